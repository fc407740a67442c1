-- What a restore replaced.
ALTER TABLE customer_backup_jobs ADD COLUMN kept_snapshot TEXT;
ALTER TABLE customer_backup_jobs ADD COLUMN recovered INTEGER NOT NULL DEFAULT 0;
