"""Everything about many cells: running them, and tables and figures out of their rows. The paper's method needs none of it."""
