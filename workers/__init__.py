"""arq entry points: worker settings and job functions, glue only."""
