"""What makes a loader at home elsewhere: one file for each framework, imported only on use."""
