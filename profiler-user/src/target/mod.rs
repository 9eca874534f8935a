//! What a process is: mappings, Python, greenlet, layouts, probe sites.
