"""Quality and cost tables. Each module prints the table that the help pages and the README quote."""
