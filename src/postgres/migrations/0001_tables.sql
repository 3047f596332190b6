-- The tables of one schema; a schema may hold the writers' shares ("shards") of one sale system.
--
-- `batches` is the log, and the truth; `inventory`, `reservations` and `reservation_lines` say the same in rows, kept in the
-- transaction of each batch. Read them as you like. Who writes them by hand makes the writer halt, and its error name the row.

-- Who may write: the fence that every commit passes. One row a shard, rewritten in place.
CREATE TABLE writer (
    shard         int2        PRIMARY KEY,
    epoch         int8        NOT NULL,
    writer_id     uuid        NOT NULL,
    last_batch    int8        NOT NULL,
    last_hash     bytea       NOT NULL,
    last_sequence int8        NOT NULL,
    last_stamp    timestamptz NOT NULL,
    credit_micros int8        NOT NULL, -- by so much every live deadline is later than its row says
    handed_on     boolean     NOT NULL, -- its writer has closed: anybody may take the role
    committed_at  timestamptz NOT NULL  -- by this server's clock
) WITH (fillfactor = 20);

CREATE TABLE batches (
    shard            int2        NOT NULL,
    number           int8        NOT NULL, -- dense, from 1
    epoch            int8        NOT NULL,
    writer_id        uuid        NOT NULL,
    stamp            timestamptz NOT NULL,
    first_sequence   int8        NOT NULL,
    prev_hash        bytea       NOT NULL,
    hash             bytea       NOT NULL,
    source_ids       int8[]      NOT NULL, -- where the sources stand after it
    source_positions int8[]      NOT NULL,
    events           bytea       NOT NULL, -- 128 bytes each: see the view `events`
    refusals         bytea       NOT NULL, -- 64 bytes each: see the view `refusals`
    PRIMARY KEY (shard, number)
);
-- Compressing them costs the writer more than it saves the disk.
ALTER TABLE batches ALTER COLUMN events SET STORAGE EXTERNAL, ALTER COLUMN refusals SET STORAGE EXTERNAL;

CREATE TABLE inventory (
    shard       int2        NOT NULL,
    sku         int4        NOT NULL, -- dense, from 0
    sku_id      text        NOT NULL,
    total       int8        NOT NULL,
    available   int8        NOT NULL,
    reserved    int8        NOT NULL,
    sold        int8        NOT NULL,
    sale        int4        NOT NULL, -- how often it was opened
    gates       int2        NOT NULL,
    is_open               boolean GENERATED ALWAYS AS ((gates & 1) <> 0) STORED,
    reservations_paused   boolean GENERATED ALWAYS AS ((gates & 2) <> 0) STORED,
    confirms_paused       boolean GENERATED ALWAYS AS ((gates & 4) <> 0) STORED,
    has_ended             boolean GENERATED ALWAYS AS ((gates & 8) <> 0) STORED,
    hold_ms     int4        NOT NULL,
    per_user    int8,
    per_request int8,
    opens_at    timestamptz NOT NULL,
    closes_at   timestamptz NOT NULL,
    sequence    int8        NOT NULL, -- of the last event when the row was written
    as_of       timestamptz NOT NULL,
    PRIMARY KEY (shard, sku),
    UNIQUE (shard, sku_id),
    CONSTRAINT l1_no_oversell CHECK (reserved >= 0 AND sold >= 0 AND reserved + sold <= total),
    CONSTRAINT l2_no_lost_unit CHECK (available >= 0 AND available + reserved + sold = total)
) WITH (fillfactor = 20);

CREATE TABLE reservations (
    id          int8        PRIMARY KEY, -- shard (16 bits) and sequence (48): ascending
    created_at  timestamptz NOT NULL,
    deadline    timestamptz NOT NULL, -- without credits: see the view `holds`
    ended_at    timestamptz,
    replaces    int8,
    user_id     uuid        NOT NULL,
    key         uuid,
    payment_ref uuid,
    sku         int4        NOT NULL, -- of the first line
    quantity    int4        NOT NULL,
    returned    int4        NOT NULL,
    sale        int4        NOT NULL,
    attempt     int4        NOT NULL, -- of a payment, 0 before the first
    lines       int2        NOT NULL, -- from the second on they are in `reservation_lines`
    status      text        NOT NULL,
    CONSTRAINT l3_one_end CHECK ((ended_at IS NULL) = (status = 'RESERVED' OR status = 'IN_PAYMENT')),
    CONSTRAINT l2_quantity CHECK (quantity > 0 AND returned BETWEEN 0 AND quantity)
);
-- What can lapse, and nothing else.
CREATE INDEX reservations_live ON reservations (deadline) WHERE ended_at IS NULL;

CREATE TABLE reservation_lines (
    reservation_id int8 NOT NULL,
    line           int2 NOT NULL, -- from 1: the first one, 0, is in `reservations`
    sku            int4 NOT NULL,
    quantity       int4 NOT NULL,
    returned       int4 NOT NULL,
    PRIMARY KEY (reservation_id, line),
    CONSTRAINT l2_quantity CHECK (quantity > 0 AND returned BETWEEN 0 AND quantity)
);

-- States made from the log, so that a recovery need not read all of it.
CREATE TABLE snapshots (
    shard            int2        NOT NULL,
    batch            int8        NOT NULL, -- the last one that it counts
    batch_hash       bytea       NOT NULL,
    stamp            timestamptz NOT NULL,
    sequence         int8        NOT NULL,
    source_ids       int8[]      NOT NULL,
    source_positions int8[]      NOT NULL,
    parts            int4        NOT NULL,
    hash             bytea       NOT NULL, -- over the parts
    PRIMARY KEY (shard, batch)
);
CREATE TABLE snapshot_parts (
    shard   int2  NOT NULL,
    batch   int8  NOT NULL,
    part    int4  NOT NULL, -- from 0
    records bytea NOT NULL,
    PRIMARY KEY (shard, batch, part)
);
ALTER TABLE snapshot_parts ALTER COLUMN records SET STORAGE EXTERNAL;

-- The advisory lock that the session of this epoch's writer holds while it lives. It tells a standby that nobody is there; it
-- is the row in `writer` that fences.
CREATE FUNCTION owner_lock(shard int2, epoch int8) RETURNS int8 LANGUAGE sql STABLE STRICT AS $$
    SELECT ('writer'::regclass::oid::int8 << 32) | ((shard::int8 & 65535) << 16) | (epoch & 65535)
$$;
-- The process that holds it; none if its session has ended.
CREATE FUNCTION owner_process(shard int2, epoch int8) RETURNS int4 LANGUAGE sql STABLE STRICT AS $$
    SELECT pid FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND objsubid = 1
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND ((classid::int8 << 32) | objid::int8) = owner_lock(shard, epoch)
$$;

-- Ends a statement, and all it has done, with an error of its own class.
CREATE FUNCTION refuse(what text) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RAISE EXCEPTION '%', what USING ERRCODE = 'SK001';
END $$;

-- Little-endian fields of records.
CREATE FUNCTION record_u32(record bytea, at int) RETURNS int8 LANGUAGE sql IMMUTABLE STRICT AS $$
    SELECT get_byte(record, at)::int8 | (get_byte(record, at + 1)::int8 << 8)
         | (get_byte(record, at + 2)::int8 << 16) | (get_byte(record, at + 3)::int8 << 24)
$$;
CREATE FUNCTION record_u64(record bytea, at int) RETURNS int8 LANGUAGE sql IMMUTABLE STRICT AS $$
    SELECT record_u32(record, at) | (record_u32(record, at + 4) << 32)
$$;
-- An id of 128 bits; zero is none.
CREATE FUNCTION record_id(record bytea, at int) RETURNS uuid LANGUAGE sql IMMUTABLE STRICT AS $$
    SELECT nullif(string_agg(lpad(to_hex(get_byte(record, at + i)), 2, '0'), '' ORDER BY i DESC),
                  repeat('0', 32))::uuid
    FROM generate_series(0, 15) AS i
$$;

-- A reservation's id as users see it.
CREATE FUNCTION reservation_text(id int8) RETURNS text LANGUAGE sql IMMUTABLE STRICT AS $$
    SELECT 'res-' || string_agg(
        substr('0123456789ABCDEFGHJKMNPQRSTVWXYZ',
               CASE i WHEN 12 THEN ((id >> 60) & 15)::int ELSE ((id >> (i * 5)) & 31)::int END + 1, 1),
        '' ORDER BY i DESC)
    FROM generate_series(0, 12) AS i
$$;

-- Reservations whose units are held, with the deadline that counts.
CREATE VIEW holds AS
    SELECT r.*, r.deadline + w.credit_micros * interval '1 microsecond' AS expires_at
    FROM reservations r JOIN writer w ON w.shard = (r.id >> 48)::int2
    WHERE r.ended_at IS NULL;

-- The log's events, decoded.
CREATE VIEW events AS
    SELECT shard, batch, first_sequence + place AS sequence, stamp AS at,
           (ARRAY['sku_named', 'sku_defined', 'total_adjusted', 'gate_set', 'cart_lines', 'reserved', 'payment_begun',
                  'payment_failed', 'confirmed', 'refund_due', 'released', 'expired', 'returned', 'deadline_moved',
                  'deadlines_credited', 'repeated', 'policy_set', 'withdrawn', 'deposited'])[kind] AS kind,
           CASE WHEN kind IN (2, 3, 4, 6, 7, 8, 9, 10, 11, 13, 16, 18, 19) THEN record_id(record, 24) END AS user_id,
           CASE WHEN kind IN (2, 3, 4, 6, 7, 8, 9, 10, 11, 13, 16, 18, 19) THEN record_id(record, 40) END AS key,
           CASE WHEN kind = 6 THEN (shard::int8 << 48) | (first_sequence + place)
                WHEN kind IN (7, 8, 9, 10, 11) THEN record_u64(record, 68)
                WHEN kind IN (12, 14) THEN record_u64(record, 24)
                WHEN kind = 13 THEN nullif(record_u64(record, 84), 0) END AS reservation_id,
           CASE WHEN kind = 1 THEN record_u32(record, 24)
                WHEN kind IN (2, 6, 18, 19) THEN record_u32(record, 68)
                WHEN kind IN (3, 4) THEN record_u32(record, 84)
                WHEN kind = 13 THEN record_u32(record, 92) END AS sku,
           CASE WHEN kind = 6 THEN record_u32(record, 72)
                WHEN kind = 13 THEN record_u32(record, 96) END AS quantity,
           record
    FROM (SELECT b.shard, b.number AS batch, b.stamp, b.first_sequence, place, record, get_byte(record, 0) AS kind
          FROM batches b,
               generate_series(0, octet_length(b.events) / 128 - 1) AS place,
               substring(b.events FROM place * 128 + 1 FOR 128) AS record) AS records;

-- Refusals: they changed nothing, and answer their keys.
CREATE VIEW refusals AS
    SELECT b.shard, b.number AS batch, b.stamp AS at, get_byte(record, 0) AS code, get_byte(record, 1) AS command,
           record_id(record, 4) AS user_id, record_id(record, 20) AS key, record_u32(record, 48) AS sku, record
    FROM batches b,
         generate_series(0, octet_length(b.refusals) / 64 - 1) AS place,
         substring(b.refusals FROM place * 64 + 1 FOR 64) AS record;
