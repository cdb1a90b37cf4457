"""Cloud endpoints: one protocol per file, without I/O; `http` carries them."""
