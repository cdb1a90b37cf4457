"""Programs, which people start. Nothing outside this folder imports them, but by `edgeroute.system.imports.import_tool`."""
