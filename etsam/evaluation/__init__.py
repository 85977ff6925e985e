"""Numbers of an evaluation, and what is made of them: tables, tests, pictures."""
