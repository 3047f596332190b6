-- One batch, in one statement and so in one transaction: all of it, or nothing.
-- The first arm is the fence; every other arm joins it and so does nothing where the fence lets nobody through.
WITH fence AS (
    UPDATE writer
    SET last_batch = $4::int8, last_hash = $6::bytea, last_stamp = $7::timestamptz,
        last_sequence = $8::int8 - 1 + octet_length($9::bytea) / 128,
        credit_micros = credit_micros + $13::int8, committed_at = clock_timestamp()
    WHERE shard = $1::int2 AND epoch = $2::int8 AND writer_id = $3::uuid
      AND last_batch = $4::int8 - 1 AND last_hash = $5::bytea AND NOT handed_on
    RETURNING shard, last_sequence
), batch AS (
    INSERT INTO batches (shard, number, epoch, writer_id, stamp, first_sequence, prev_hash, hash,
                         source_ids, source_positions, events, refusals)
    SELECT shard, $4::int8, $2::int8, $3::uuid, $7::timestamptz, $8::int8, $5::bytea, $6::bytea,
           $11::int8[], $12::int8[], $9::bytea, $10::bytea
    FROM fence
), created AS (
    INSERT INTO reservations (id, user_id, key, sku, quantity, lines, sale, deadline, replaces,
                              status, ended_at, attempt, payment_ref, returned, created_at)
    SELECT made.*, $7::timestamptz
    FROM fence, unnest($14::int8[], $15::uuid[], $16::uuid[], $17::int4[], $18::int4[], $19::int2[], $20::int4[],
                       $21::timestamptz[], $22::int8[], $23::text[], $24::timestamptz[], $25::int4[], $26::uuid[],
                       $27::int4[]) AS made
), created_lines AS (
    INSERT INTO reservation_lines (reservation_id, line, sku, quantity, returned)
    SELECT made.* FROM fence, unnest($28::int8[], $29::int2[], $30::int4[], $31::int4[], $32::int4[]) AS made
), came_back AS MATERIALIZED (
    SELECT given.* FROM fence, unnest($39::int8[], $40::int4[], $41::int4[]) AS given (id, sku, quantity)
), changed AS (
    UPDATE reservations r
    SET status = coalesce(change.status, r.status),
        ended_at = CASE WHEN change.status IN ('CONFIRMED', 'RELEASED', 'EXPIRED') THEN $7::timestamptz ELSE r.ended_at END,
        deadline = coalesce(change.deadline, r.deadline),
        attempt = coalesce(change.attempt, r.attempt),
        payment_ref = coalesce(change.payment_ref, r.payment_ref),
        returned = r.returned + coalesce((SELECT b.quantity FROM came_back b WHERE b.id = r.id AND b.sku = r.sku), 0)
    FROM fence, unnest($33::int8[], $34::boolean[], $35::text[], $36::timestamptz[], $37::int4[], $38::uuid[])
                AS change (id, was_live, status, deadline, attempt, payment_ref)
    WHERE r.id = change.id AND (r.ended_at IS NULL) = change.was_live
    RETURNING r.id, r.sku, r.quantity, r.lines, change.status
), changed_lines AS (
    UPDATE reservation_lines l
    SET returned = l.returned + b.quantity
    FROM fence, came_back b
    WHERE l.reservation_id = b.id AND l.sku = b.sku
    RETURNING l.reservation_id
), ended AS (
    SELECT sku, quantity, status FROM changed WHERE status IN ('CONFIRMED', 'RELEASED', 'EXPIRED')
    UNION ALL
    SELECT l.sku, l.quantity, c.status
    FROM changed c JOIN reservation_lines l ON l.reservation_id = c.id
    WHERE c.lines > 1 AND c.status IN ('CONFIRMED', 'RELEASED', 'EXPIRED')
), moved AS MATERIALIZED (
    SELECT sku, sum(total)::int8 AS total, sum(reserved)::int8 AS reserved, sum(sold)::int8 AS sold,
           bit_or(gates_set) AS gates_set, bit_or(gates_cleared) AS gates_cleared, max(sale) AS sale
    FROM (SELECT * FROM unnest($54::int4[], $55::int8[], $56::int8[], $57::int8[], $58::int2[], $59::int2[], $60::int4[])
                        AS known (sku, total, reserved, sold, gates_set, gates_cleared, sale)
          UNION ALL
          SELECT sku, 0, -quantity::int8, CASE status WHEN 'CONFIRMED' THEN quantity::int8 ELSE 0 END, 0::int2, 0::int2, 0
          FROM ended) AS moves
    GROUP BY sku
), defined AS (
    INSERT INTO inventory (shard, sku, sku_id, total, reserved, sold, sale, gates, hold_ms, per_user, per_request,
                           opens_at, closes_at, available, sequence, as_of)
    SELECT shard, new.*, new.total - new.reserved - new.sold, last_sequence, $7::timestamptz
    FROM fence, unnest($42::int4[], $43::text[], $44::int8[], $45::int8[], $46::int8[], $47::int4[], $48::int2[],
                       $49::int4[], $50::int8[], $51::int8[], $52::timestamptz[], $53::timestamptz[])
                AS new (sku, sku_id, total, reserved, sold, sale, gates, hold_ms, per_user, per_request, opens_at, closes_at)
), stock AS (
    UPDATE inventory i
    SET total = i.total + m.total, reserved = i.reserved + m.reserved, sold = i.sold + m.sold,
        available = i.available + m.total - m.reserved - m.sold,
        gates = (i.gates & (~m.gates_cleared)) | m.gates_set, sale = greatest(i.sale, m.sale),
        sequence = fence.last_sequence, as_of = $7::timestamptz
    FROM fence, moved m
    WHERE i.shard = fence.shard AND i.sku = m.sku
    RETURNING i.sku, i.sku_id, i.total, i.available, i.reserved, i.sold
), drifted AS (
    -- Rows that are not what the writer knows them to be.
    SELECT format('inventory row %s: total %s, reserved %s, sold %s; the writer has %s, %s, %s',
                  s.sku_id, s.total, s.reserved, s.sold, e.total, e.reserved, e.sold) AS row
    FROM stock s JOIN unnest($61::int4[], $62::int8[], $63::int8[], $64::int8[]) AS e (sku, total, reserved, sold)
                 ON e.sku = s.sku
    WHERE (s.total, s.reserved, s.sold) <> (e.total, e.reserved, e.sold)
)
SELECT CASE
    WHEN (SELECT count(*) FROM changed) <> cardinality($33::int8[]) THEN refuse(
        (SELECT format('reservations row %s (%s) is missing or not as the writer knows it', given.id, reservation_text(given.id))
         FROM unnest($33::int8[]) AS given (id) WHERE NOT EXISTS (SELECT FROM changed c WHERE c.id = given.id) LIMIT 1))
    WHEN (SELECT count(*) FROM changed_lines)
         + (SELECT count(*) FROM came_back b JOIN changed c ON c.id = b.id AND c.sku = b.sku) <> cardinality($39::int8[])
    THEN refuse('reservation_lines rows of a return are missing')
    WHEN (SELECT count(*) FROM stock) <> (SELECT count(*) FROM moved) THEN refuse(
        (SELECT format('inventory row of SKU #%s is missing', m.sku)
         FROM moved m WHERE NOT EXISTS (SELECT FROM stock s WHERE s.sku = m.sku) LIMIT 1))
    WHEN EXISTS (SELECT FROM drifted) THEN refuse((SELECT row FROM drifted LIMIT 1))
    ELSE true
END
FROM fence
