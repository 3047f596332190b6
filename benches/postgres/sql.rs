//! What plain SQL does, on the server and under the settings that the store has: one transaction per reservation.
//!
//! Each is given what helps it: statements prepared and plans kept; all checks and writes in one call of a server-side
//! function, so that no lock is held over more round trips than the way itself needs; ids that ascend; the stock row on a page
//! with room for its versions. A refusal leaves no record.

use crate::job::{Answer, Caller, Failure, HOLD_S, LIMIT, Outcome, Peer, Request};
use postgres::{Client, NoTls, Statement};

/// `reserve` takes the stock last, so that its row is locked for little more than the commit. `reserve_seen` takes it
/// first, so that who is too late has done nothing in vain; 0 says that.
const SCHEMA: &str = "
    CREATE TABLE stock (sku int4 PRIMARY KEY, total int8 NOT NULL, available int8 NOT NULL CHECK (available >= 0),
        version int8 NOT NULL) WITH (fillfactor = 20);
    CREATE TABLE limits (user_id uuid PRIMARY KEY, units int4 NOT NULL);
    CREATE TABLE holds (id int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY, user_id uuid NOT NULL, key uuid NOT NULL UNIQUE,
        sku int4 NOT NULL, quantity int4 NOT NULL, expires_at timestamptz NOT NULL);
    CREATE FUNCTION reserve(who uuid, its_key uuid, most int4, seconds int4) RETURNS int8 LANGUAGE plpgsql AS $$
    DECLARE hold int8;
    BEGIN
        INSERT INTO holds (user_id, key, sku, quantity, expires_at)
            VALUES (who, its_key, 0, 1, now() + make_interval(secs => seconds))
            ON CONFLICT (key) DO NOTHING RETURNING id INTO hold;
        IF hold IS NULL THEN
            RETURN (SELECT id FROM holds WHERE key = its_key);
        END IF;
        INSERT INTO limits VALUES (who, 1)
            ON CONFLICT (user_id) DO UPDATE SET units = limits.units + 1 WHERE limits.units < most;
        IF NOT FOUND THEN
            DELETE FROM holds WHERE id = hold;
            RETURN -1;
        END IF;
        UPDATE stock SET available = available - 1 WHERE sku = 0 AND available >= 1;
        IF NOT FOUND THEN
            DELETE FROM holds WHERE id = hold;
            UPDATE limits SET units = units - 1 WHERE user_id = who;
            RETURN -2;
        END IF;
        RETURN hold;
    END $$;
    CREATE FUNCTION reserve_seen(who uuid, its_key uuid, most int4, seconds int4, seen int8) RETURNS int8
    LANGUAGE plpgsql AS $$
    DECLARE hold int8;
    BEGIN
        UPDATE stock SET available = available - 1, version = version + 1
            WHERE sku = 0 AND version = seen AND available >= 1;
        IF NOT FOUND THEN
            RETURN CASE WHEN EXISTS (SELECT FROM stock WHERE version = seen)
                THEN coalesce((SELECT id FROM holds WHERE key = its_key),
                              (SELECT -1 FROM limits WHERE user_id = who AND units >= most), -2)
                ELSE 0 END;
        END IF;
        INSERT INTO holds (user_id, key, sku, quantity, expires_at)
            VALUES (who, its_key, 0, 1, now() + make_interval(secs => seconds))
            ON CONFLICT (key) DO NOTHING RETURNING id INTO hold;
        IF hold IS NULL THEN
            UPDATE stock SET available = available + 1 WHERE sku = 0;
            RETURN (SELECT id FROM holds WHERE key = its_key);
        END IF;
        INSERT INTO limits VALUES (who, 1)
            ON CONFLICT (user_id) DO UPDATE SET units = limits.units + 1 WHERE limits.units < most;
        IF NOT FOUND THEN
            DELETE FROM holds WHERE id = hold;
            UPDATE stock SET available = available + 1 WHERE sku = 0;
            RETURN -1;
        END IF;
        RETURN hold;
    END $$;
";
/// Those of the store's own sessions.
const SETTINGS: &str =
    "SET search_path = peer; SET plan_cache_mode = force_generic_plan; SET jit = off;
    SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// `BEGIN; SELECT .. FOR UPDATE; reserve; COMMIT`: four round trips, the row is locked for two of them and the commit.
    RowLock,
    /// Read the version, then write if it is still that one, else from the start; two round trips a try.
    Optimistic,
    /// `UPDATE .. WHERE available >= 1` with all the rest in one statement.
    Conditional,
}

pub(crate) struct Sql {
    url: String,
    way: Way,
}

impl Sql {
    /// In a schema `peer` of its own, in place of the last one's.
    pub(crate) fn new(url: &str, way: Way, stock: u64) -> Outcome<Self> {
        let mut client = Client::connect(url, NoTls)?;
        client.batch_execute("DROP SCHEMA IF EXISTS peer CASCADE; CREATE SCHEMA peer")?;
        client.batch_execute(SETTINGS)?;
        client.batch_execute(SCHEMA)?;
        let total = i64::try_from(stock)?;
        client.execute("INSERT INTO stock VALUES (0, $1, $1, 0)", &[&total])?;
        let url = url.to_owned();
        Ok(Self { url, way })
    }

    fn client(&self) -> Outcome<Client> {
        let mut client = Client::connect(&self.url, NoTls)?;
        client.batch_execute(SETTINGS)?;
        Ok(client)
    }
}

impl Peer for Sql {
    fn caller(&self) -> Outcome<Box<dyn Caller>> {
        let mut client = self.client()?;
        let (look, write) = match self.way {
            Way::RowLock => (
                Some("SELECT available FROM stock WHERE sku = 0 FOR UPDATE"),
                "SELECT reserve($1, $2, $3, $4)",
            ),
            Way::Optimistic => (
                Some("SELECT version FROM stock WHERE sku = 0"),
                "SELECT reserve_seen($1, $2, $3, $4, $5)",
            ),
            Way::Conditional => (None, "SELECT reserve($1, $2, $3, $4)"),
        };
        let look = look.map(|look| client.prepare(look)).transpose()?;
        let write = client.prepare(write)?;
        Ok(Box::new(SqlCaller {
            client,
            way: self.way,
            look,
            write,
            tries: 0,
        }))
    }

    fn counts(&self) -> Outcome<(u64, u64)> {
        let sql = "SELECT available, (SELECT count(*) FROM holds) FROM stock";
        let row = self.client()?.query_one(sql, &[])?;
        let count = |at| u64::try_from(row.get::<_, i64>(at));
        Ok((count(0)?, count(1)?))
    }
}

struct SqlCaller {
    client: Client,
    way: Way,
    /// What is read before the write, if anything.
    look: Option<Statement>,
    write: Statement,
    tries: u64,
}

impl SqlCaller {
    fn one(&mut self, request: Request) -> Outcome<Answer> {
        let (user, key) = (Id(request.user), Id(request.key));
        let (limit, seconds) = (LIMIT.cast_signed(), HOLD_S.cast_signed());
        for failed in 0.. {
            self.tries += 1;
            let usual: [&(dyn postgres::types::ToSql + Sync); 4] = [&user, &key, &limit, &seconds];
            let row = match (self.way, &self.look) {
                (Way::RowLock, Some(look)) => {
                    let mut transaction = self.client.transaction()?;
                    transaction.query_one(look, &[])?;
                    let row = transaction.query_one(&self.write, &usual)?;
                    transaction.commit()?;
                    row
                }
                (_, Some(look)) => {
                    let seen: i64 = self.client.query_one(look, &[])?.get(0);
                    let params = [&usual[..], &[&seen]].concat();
                    self.client.query_one(&self.write, &params)?
                }
                (_, None) => self.client.query_one(&self.write, &usual)?,
            };
            let word: i64 = row.get(0);
            if word != 0 {
                return Answer::from_word(word);
            }
            crate::back_off(self.tries, failed);
        }
        Err("it was tried too often".into())
    }
}

impl Caller for SqlCaller {
    fn reserve(&mut self, requests: &[Request], answers: &mut Vec<Answer>) -> Outcome<()> {
        for &request in requests {
            answers.push(self.one(request)?);
        }
        Ok(())
    }

    fn tries(&self) -> u64 {
        self.tries
    }
}

/// 128 bits as a `uuid`.
#[derive(Debug)]
struct Id(u128);

impl postgres::types::ToSql for Id {
    fn to_sql(
        &self,
        _: &postgres::types::Type,
        out: &mut bytes::BytesMut,
    ) -> Result<postgres::types::IsNull, Failure> {
        out.extend_from_slice(&self.0.to_be_bytes());
        Ok(postgres::types::IsNull::No)
    }

    postgres::types::accepts!(UUID);
    postgres::types::to_sql_checked!();
}
