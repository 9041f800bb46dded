"""What measures accm against its parts and against others; not part of the package."""
