//! What Redis does by itself: a lock around reads and writes, and one script that does everything.
//!
//! Both keep the same keys: `stock` with what is left, `user:..` with his units, `key:..` with the answer, `hold:..` with the
//! record. Each is given what its documentation recommends: the lock is taken by `SET NX PX` under a token of its
//! own and given back by a script that compares it, what is read and what is written under it goes in one pipeline each, and a
//! caller who finds it taken tries again after a random time; the script is loaded once and called by its hash, many
//! calls in a pipeline. Commands go without Nagle's delay. How safe an answer is says `appendfsync`: by `always` it
//! is on the disk, by `everysec` the last second of answers can be lost. A refusal leaves no record.

use crate::job::{Answer, Caller, HOLD_S, LIMIT, Outcome, Peer, Request};
use crate::servers::Server;
use redis::{Connection, IntoConnectionInfo, Pipeline, Script};

/// How long an answer is kept under its key, in seconds.
const RETENTION_S: u32 = 86_400;
/// The lock lapses after so many milliseconds.
const LOCK_MS: u32 = 5_000;
const RESERVE: &str = "
    local held = redis.call('GET', KEYS[3])
    if held then return tonumber(held) end
    if tonumber(redis.call('GET', KEYS[2]) or '0') >= tonumber(ARGV[1]) then return -1 end
    local left = tonumber(redis.call('GET', KEYS[1]))
    if left < 1 then return -2 end
    redis.call('DECR', KEYS[1])
    redis.call('INCR', KEYS[2])
    redis.call('SET', KEYS[3], left, 'EX', ARGV[2])
    redis.call('HSET', KEYS[4], 'id', left, 'user', KEYS[2], 'sku', 0, 'quantity', 1)
    redis.call('EXPIRE', KEYS[4], ARGV[3])
    return left";
/// Gives the lock back if it is still the caller's.
const UNLOCK: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Lock,
    Script,
}

/// When Redis writes its log through to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fsync {
    EverySec,
    Always,
}

pub(crate) struct InRedis {
    server: Server,
    way: Way,
}

impl InRedis {
    /// On a server of its own.
    pub(crate) fn new(way: Way, fsync: Fsync, stock: u64) -> Outcome<Self> {
        let fsync = match fsync {
            Fsync::EverySec => "everysec",
            Fsync::Always => "always",
        };
        let arguments = ["--appendonly", "yes", "--appendfsync", fsync].map(str::to_owned);
        let server = Server::start("redis.sh", &arguments);
        let peer = Self { server, way };
        redis::cmd("SET")
            .arg("stock")
            .arg(stock)
            .exec(&mut peer.connect()?)?;
        Ok(peer)
    }

    fn connect(&self) -> Outcome<Connection> {
        let url = format!("redis://127.0.0.1:{}", self.server.port());
        let info = url.into_connection_info()?;
        let settings = info.tcp_settings().clone().set_nodelay(true);
        let client = redis::Client::open(info.set_tcp_settings(settings))?;
        Ok(client.get_connection()?)
    }
}

impl Peer for InRedis {
    fn caller(&self) -> Outcome<Box<dyn Caller>> {
        let mut connection = self.connect()?;
        let script = Script::new(match self.way {
            Way::Lock => UNLOCK,
            Way::Script => RESERVE,
        });
        script.prepare_invoke().load(&mut connection)?;
        let hash = script.get_hash().to_owned();
        let number: u64 = redis::cmd("CLIENT").arg("ID").query(&mut connection)?;
        Ok(match self.way {
            Way::Lock => Box::new(LockCaller {
                connection,
                unlock: hash,
                number,
                tries: 0,
            }),
            Way::Script => Box::new(ScriptCaller {
                connection,
                reserve: hash,
                calls: 0,
            }),
        })
    }

    fn counts(&self) -> Outcome<(u64, u64)> {
        let mut connection = self.connect()?;
        let left = redis::cmd("GET").arg("stock").query(&mut connection)?;
        let (mut cursor, mut holds) = (0_u64, 0);
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor)
                .arg(&["MATCH", "hold:*", "COUNT", "10000"][..]);
            let (next, found): (u64, Vec<Vec<u8>>) = scan.query(&mut connection)?;
            holds += found.len() as u64;
            cursor = next;
            if cursor == 0 {
                return Ok((left, holds));
            }
        }
    }
}

/// A name and 128 bits.
fn name(kind: &str, id: u128) -> Vec<u8> {
    [kind.as_bytes(), &id.to_be_bytes()].concat()
}

struct LockCaller {
    connection: Connection,
    unlock: String,
    /// No other caller has it.
    number: u64,
    tries: u64,
}

impl LockCaller {
    fn one(&mut self, request: Request) -> Outcome<Answer> {
        let token = self.lock()?;
        let user = name("user:", request.user);
        let (key, hold) = (name("key:", request.key), name("hold:", request.key));
        let (held, units, left): (Option<i64>, Option<u32>, i64) = redis::cmd("MGET")
            .arg(&key)
            .arg(&user)
            .arg("stock")
            .query(&mut self.connection)?;
        let word = match held {
            Some(held) => held,
            None if units.unwrap_or(0) >= LIMIT => -1,
            None if left < 1 => -2,
            None => left,
        };
        let mut write = redis::pipe();
        write.atomic();
        if held.is_none() && word > 0 {
            write.decr("stock", 1).ignore();
            write.incr(&user, 1).ignore();
            write.set_ex(&key, left, u64::from(RETENTION_S)).ignore();
            let fields = [("id", left), ("sku", 0), ("quantity", 1)];
            write.hset_multiple(&hold, &fields).ignore();
            write.hset(&hold, "user", &user).ignore();
            write.expire(&hold, i64::from(HOLD_S)).ignore();
        }
        write.cmd("EVALSHA").arg(&self.unlock).arg(1);
        write.arg("lock").arg(token);
        let (unlocked,): (u32,) = write.query(&mut self.connection)?;
        if unlocked == 0 {
            return Err("the lock has lapsed under its holder".into());
        }
        Answer::from_word(word)
    }

    /// Its token.
    fn lock(&mut self) -> Outcome<String> {
        for failed in 0.. {
            self.tries += 1;
            let token = format!("{}-{}", self.number, self.tries);
            let mut lock = redis::cmd("SET");
            lock.arg("lock")
                .arg(&token)
                .arg("NX")
                .arg("PX")
                .arg(LOCK_MS);
            if lock
                .query::<Option<String>>(&mut self.connection)?
                .is_some()
            {
                return Ok(token);
            }
            crate::back_off(self.number ^ self.tries, failed);
        }
        Err("it was tried too often".into())
    }
}

impl Caller for LockCaller {
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

struct ScriptCaller {
    connection: Connection,
    reserve: String,
    calls: u64,
}

impl Caller for ScriptCaller {
    fn reserve(&mut self, requests: &[Request], answers: &mut Vec<Answer>) -> Outcome<()> {
        let mut calls = Pipeline::with_capacity(requests.len());
        for request in requests {
            calls.cmd("EVALSHA").arg(&self.reserve).arg(4).arg("stock");
            calls.arg(name("user:", request.user));
            calls.arg(name("key:", request.key));
            calls.arg(name("hold:", request.key));
            calls.arg(LIMIT).arg(RETENTION_S).arg(HOLD_S);
        }
        self.calls += requests.len() as u64;
        let words: Vec<i64> = calls.query(&mut self.connection)?;
        for word in words {
            answers.push(Answer::from_word(word)?);
        }
        Ok(())
    }

    fn tries(&self) -> u64 {
        self.calls
    }
}
