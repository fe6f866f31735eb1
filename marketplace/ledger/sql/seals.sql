-- Seals: closed ranges of transfers under digests that chain. Canonical bytes and trees are those of
-- marketplace/ledger/extract_verifier.py, which is the second, independent implementation that checks these.
--
-- Transfers are ordered by `number`, which each takes from a sequence after its accounts are locked: within an account
-- it is the order of commits; between accounts it is not, so a number may still be missing because its transaction runs.

-- Where a range may end once every transaction below `decided` has ended. The number is read first and the id taken
-- after it, so whoever holds a number up to `upto` has an id below `decided` (it locked accounts before it took the number).
CREATE FUNCTION ledger_seal_horizon(OUT upto bigint, OUT decided xid8)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    upto := coalesce(pg_sequence_last_value(pg_get_serial_sequence('ledger_transfer', 'number')::regclass), 0);
    decided := pg_current_xact_id();
END $$;

CREATE FUNCTION ledger_transfer_leaf(t ledger_transfer) RETURNS bytea LANGUAGE sql STABLE AS $$
    SELECT sha256(
        '\x00'::bytea || int8send(t.number) || uuid_send(t.id)
        || sha256('\x03'::bytea || uuid_send(t.id) || uuid_send(t.debit_account_id)
            || coalesce('\x01'::bytea || uuid_send(t.hold_id), '\x00'::bytea))
        || sha256('\x04'::bytea || uuid_send(t.id) || uuid_send(t.credit_account_id))
        || int8send(t.amount_micros)
        || int8send((extract(epoch FROM t.occurred_at) * 1000000)::bigint)
        || int8send((extract(epoch FROM t.created_at) * 1000000)::bigint)
        || coalesce('\x01'::bytea || uuid_send(t.reference_id), '\x00'::bytea)
        || convert_to(t.code, 'UTF8'))
$$;

-- RFC 6962, section 2.1: nodes pair up level by level, one that is left over goes up as it is; of nothing, sha256('').
CREATE FUNCTION ledger_tree_root(p_leaves bytea[]) RETURNS bytea LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    v_nodes bytea[] := p_leaves;
BEGIN
    IF coalesce(cardinality(v_nodes), 0) = 0 THEN
        RETURN sha256(''::bytea);
    END IF;
    WHILE cardinality(v_nodes) > 1 LOOP
        SELECT array_agg(node ORDER BY place) INTO v_nodes FROM (
            SELECT (n - 1) / 2 AS place, CASE WHEN count(*) = 2
                THEN sha256('\x01'::bytea || string_agg(h, ''::bytea ORDER BY n)) ELSE (array_agg(h))[1] END AS node
            FROM unnest(v_nodes) WITH ORDINALITY AS u (h, n) GROUP BY 1
        ) AS level;
    END LOOP;
    RETURN v_nodes[1];
END $$;

-- Seals the next transfers up to number `p_upto`, `p_limit` of them at most; how many. -1: a transaction that may hold
-- one of these numbers still runs, nothing is sealed, ask again. One seal is made at a time.
CREATE FUNCTION ledger_seal(p_upto bigint, p_decided xid8, p_limit integer, p_now timestamptz) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_previous record;
    v_count integer;
    v_last bigint;
    v_from timestamptz;
    v_to timestamptz;
    v_members bytea;
    v_leaves bytea[];
    v_root bytea;
    v_accounts_root bytea;
    v_number bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('ledger_seal', 0));
    IF pg_snapshot_xmin(pg_current_snapshot()) < p_decided THEN
        RETURN -1;
    END IF;
    SELECT number, last_number, digest INTO v_previous FROM ledger_seal ORDER BY number DESC LIMIT 1;
    v_number := coalesce(v_previous.number, 0) + 1;
    SELECT count(*), max(number), min(occurred_at), max(occurred_at),
           string_agg(uuid_send(id) || leaf, ''::bytea ORDER BY number), array_agg(leaf ORDER BY number)
      INTO v_count, v_last, v_from, v_to, v_members, v_leaves
      FROM (
        SELECT t.number, t.id, t.occurred_at, ledger_transfer_leaf(t) AS leaf FROM ledger_transfer AS t
         WHERE t.number > coalesce(v_previous.last_number, 0) AND t.number <= p_upto ORDER BY t.number LIMIT p_limit
      ) AS closed;
    IF v_count = 0 THEN
        RETURN 0;
    END IF;
    v_root := ledger_tree_root(v_leaves);
    WITH closed AS (
        SELECT debit_account_id, credit_account_id, amount_micros FROM ledger_transfer
         WHERE number > coalesce(v_previous.last_number, 0) AND number <= v_last
    ), moves AS (
        SELECT m.account, count(*) AS entries, sum(m.debited) AS debited, sum(m.credited) AS credited
          FROM closed, LATERAL (VALUES (debit_account_id, amount_micros, 0), (credit_account_id, 0, amount_micros))
            AS m (account, debited, credited) GROUP BY 1
    ), sums AS (
        SELECT m.account, coalesce(p.entries, 0) + m.entries AS entries,
               (coalesce(p.debits_micros, 0) + m.debited)::bigint AS debits,
               (coalesce(p.credits_micros, 0) + m.credited)::bigint AS credits
          FROM moves AS m LEFT JOIN LATERAL (
            SELECT entries, debits_micros, credits_micros FROM ledger_sealedbalance
             WHERE account_id = m.account ORDER BY seal_id DESC LIMIT 1
          ) AS p ON true
    ), written AS (
        INSERT INTO ledger_sealedbalance (seal_id, account_id, place, entries, debits_micros, credits_micros)
        SELECT v_number, account, row_number() OVER (ORDER BY account) - 1, entries, debits, credits FROM sums
        RETURNING place, account_id, entries, debits_micros, credits_micros
    )
    SELECT ledger_tree_root(array_agg(sha256('\x00'::bytea || uuid_send(account_id) || int8send(entries)
           || int8send(debits_micros) || int8send(credits_micros)) ORDER BY place))
      INTO v_accounts_root FROM written;
    INSERT INTO ledger_seal (
        number, first_number, last_number, transfer_count, root, accounts_root, previous_digest, digest,
        occurred_from, occurred_to, sealed_at, members
    ) SELECT v_number, first, v_last, v_count, v_root, v_accounts_root, previous,
        sha256('\x02'::bytea || int8send(v_number) || int8send(first) || int8send(v_last) || int8send(v_count)
            || v_root || v_accounts_root || previous || int8send((extract(epoch FROM p_now) * 1000000)::bigint)),
        v_from, v_to, p_now, v_members
      FROM (SELECT coalesce(v_previous.last_number, 0) + 1 AS first,
                   coalesce(v_previous.digest, decode(repeat('00', 32), 'hex')) AS previous) AS chain;
    RETURN v_count;
END $$;

REVOKE ALL ON FUNCTION ledger_seal_horizon() FROM PUBLIC;
REVOKE ALL ON FUNCTION ledger_seal(bigint, xid8, integer, timestamptz) FROM PUBLIC;
REVOKE ALL ON FUNCTION ledger_transfer_leaf(ledger_transfer) FROM PUBLIC;
REVOKE ALL ON FUNCTION ledger_tree_root(bytea[]) FROM PUBLIC;
