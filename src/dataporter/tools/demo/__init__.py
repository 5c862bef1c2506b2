"""`dataporter demo`: kills training runs, resumes them, compares them with an uninterrupted one."""
