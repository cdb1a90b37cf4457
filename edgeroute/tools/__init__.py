"""Programs, which people start. Nothing outside this folder imports them, but by `import_tool`, at their first use."""
