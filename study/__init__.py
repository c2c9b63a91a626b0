"""Everything about many cells: running them, tables and figures of their rows. The paper's method needs none of it."""
