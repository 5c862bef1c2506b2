"""`dataporter demo`: kills training processes, resumes them, compares them with one left alone."""
