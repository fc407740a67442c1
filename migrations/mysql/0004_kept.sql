-- What a restore replaced. Every statement can be repeated: in one statement, so that it is there as a whole or not at all.
SET @step = IF((SELECT COUNT(*) = 0 FROM information_schema.columns
        WHERE table_schema = DATABASE() AND table_name = 'customer_backup_jobs' AND column_name = 'kept_snapshot'),
    'ALTER TABLE customer_backup_jobs
        ADD COLUMN kept_snapshot CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NULL,
        ADD COLUMN recovered TINYINT NOT NULL DEFAULT 0',
    'DO 0');
PREPARE step FROM @step;
EXECUTE step;
DEALLOCATE PREPARE step;
