"""What people read, in English and Korean: one file of sentences a language."""
