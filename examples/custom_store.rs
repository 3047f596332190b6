//! A store of one's own: one file, one durable write a batch. The conformance kit tells whether it keeps the contract;
//! then an engine sells on it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use stockade::Engine;
use stockade::store::{OpenRequest, Progress, Recovered, Replica, Store, StoreError, conformance};
use stockade::types::{Batch, DefineSku, Gate, Reserve, SetGate, SkuName, Token, UserId};

/// Batches one after the other, each behind its length; a length of zero is a takeover, and its epoch follows. The file's
/// lock keeps a second writer out.
struct OneFile {
    path: PathBuf,
    file: Option<File>,
    last: Recovered,
}

fn fatal(error: impl std::fmt::Display) -> StoreError {
    StoreError::Fatal(format!("the log file can't be used: {error}"))
}

impl OneFile {
    fn on(path: &Path) -> Self {
        Self {
            path: path.into(),
            file: None,
            last: Recovered::default(),
        }
    }

    /// The batches up to the first that is not whole (that one was never acknowledged), the last epoch, and where the
    /// whole part ends.
    fn read(bytes: &[u8]) -> (Vec<Batch>, u64, usize) {
        let (mut batches, mut epoch, mut at) = (Vec::new(), 0, 0);
        while let Some(len) = bytes[at..].first_chunk::<8>() {
            let rest = &bytes[at + 8..];
            let Ok(len) = usize::try_from(u64::from_le_bytes(*len)) else {
                break;
            };
            if len == 0 {
                let Some(taken) = rest.first_chunk::<8>() else {
                    break;
                };
                epoch = u64::from_le_bytes(*taken);
                at += 16;
                continue;
            }
            let Some(Ok(batch)) = rest.get(..len).map(Batch::decode) else {
                break;
            };
            batches.push(batch);
            at += 8 + len;
        }
        (batches, epoch, at)
    }
}

impl Store for OneFile {
    fn open(
        &mut self,
        request: &OpenRequest,
        replica: &mut dyn Replica,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Recovered, StoreError> {
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .append(true)
            .create(true)
            .open(&self.path);
        let mut file = file.map_err(fatal)?;
        file.try_lock()
            .map_err(|error| fatal(format!("another writer has it: {error}")))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(fatal)?;
        let (batches, epoch, whole) = Self::read(&bytes);
        let mut recovered = Recovered::default();
        for (batch, done) in batches.iter().zip(1..) {
            replica.apply(batch).map_err(fatal)?;
            recovered.last_batch = batch.header.number;
            recovered.last_hash = batch.hash();
            recovered.last_stamp = batch.header.stamp;
            recovered.last_sequence = batch.last_sequence();
            recovered.sources.clone_from(&batch.header.sources);
            recovered.batches_read = done;
            recovered.events_read += batch.event_records().len() as u64;
            progress(Progress {
                done,
                total: Some(batches.len() as u64),
            });
        }
        replica.complete().map_err(fatal)?;
        recovered.token = Token {
            epoch: epoch + 1,
            writer: request.writer,
        };
        let mut takeover = [0; 16];
        takeover[8..].copy_from_slice(&recovered.token.epoch.to_le_bytes());
        file.set_len(whole as u64)
            .and_then(|()| file.write_all(&takeover))
            .and_then(|()| file.sync_data())
            .map_err(fatal)?;
        self.file = Some(file);
        self.last = recovered.clone();
        Ok(recovered)
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let (number, last) = (batch.header.number, self.last.last_batch);
        let Some(file) = &mut self.file else {
            return Err(fatal("it is not open"));
        };
        if batch.header.token != self.last.token {
            return Err(StoreError::Fenced {
                epoch: self.last.token.epoch,
            });
        }
        if number == last && batch.hash() == self.last.last_hash {
            return Ok(());
        }
        if number == last || (number == last + 1 && batch.header.prev_hash != self.last.last_hash) {
            return Err(StoreError::Fork { number });
        }
        if number != last + 1 {
            return Err(StoreError::Behind { last, next: number });
        }
        let mut bytes = (batch.encoded_len() as u64).to_le_bytes().to_vec();
        batch.encode_into(&mut bytes);
        file.write_all(&bytes)
            .and_then(|()| file.sync_data())
            .map_err(fatal)?;
        self.last.last_batch = number;
        self.last.last_hash = batch.hash();
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = std::env::temp_dir().join(format!("stockade-store-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let logs = AtomicU64::new(0);
    let report = conformance::prove(|| {
        let log = directory.join(format!("{}.log", logs.fetch_add(1, Ordering::Relaxed)));
        move || OneFile::on(&log)
    });
    println!("{report:?}");
    let sold = sell(&directory.join("sale.log"));
    std::fs::remove_dir_all(&directory)?;
    report?;
    sold
}

fn sell(log: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let engine = Engine::builder().store(OneFile::on(log)).start()?;
    let handle = engine.handle();
    let admin = UserId::from_text("admin");
    let sku = handle
        .define_sku(DefineSku::new(admin, SkuName::new("CHAIR")?, 3))?
        .wait()?;
    handle
        .set_gate(SetGate::new(admin, sku, Gate::Open))?
        .wait()?;
    let cart = Reserve::one(UserId::from(1), sku, 1)?;
    println!("{:?}", handle.reserve(cart)?.wait()?);
    Ok(())
}
