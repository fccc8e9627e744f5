//! SQLite or PostgreSQL: a pool, migrations, transactions. Knows no table of any service.
