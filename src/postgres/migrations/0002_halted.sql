-- Why nobody may take the role before an operator has decided; null: anybody may.
ALTER TABLE writer ADD COLUMN halted text;

-- The server's timeline when its writer last knew the log to be whole; null: commits waited for a standby then, so that none is
-- lost by a promotion.
ALTER TABLE writer ADD COLUMN timeline int4;
CREATE FUNCTION current_timeline() RETURNS int4 LANGUAGE sql STABLE AS $$
    SELECT ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int4
$$;
CREATE FUNCTION timeline_at_risk() RETURNS int4 LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN current_setting('synchronous_standby_names') = '' THEN current_timeline() END
$$;
