"""What makes the loader at home in a framework: one small file each, imported only on use."""
