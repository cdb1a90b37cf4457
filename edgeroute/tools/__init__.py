"""Programs, which people start. Nothing outside this folder imports them, but by `edgeroute.system.late_imports.import_tool`."""
