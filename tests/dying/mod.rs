//! A store that dies at one commit, before or after it wrote: what a crash leaves of the writer's last batch.

use stockade::store::{OpenRequest, Progress, Recovered, Replica, Store, StoreError};
use stockade::types::Batch;

/// A store that dies once it has made so many commits: before it wrote anything of the next, or after it wrote all of it.
pub(crate) struct Dying {
    pub(crate) inner: Box<dyn Store>,
    pub(crate) commits_left: usize,
    pub(crate) writes: bool,
}

impl Store for Dying {
    fn open(
        &mut self,
        request: &OpenRequest,
        replica: &mut dyn Replica,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Recovered, StoreError> {
        self.inner.open(request, replica, progress)
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        if self.commits_left > 0 {
            self.commits_left -= 1;
            return self.inner.commit(batch);
        }
        if self.writes {
            self.inner.commit(batch)?;
        }
        Err(StoreError::Fatal("killed".into()))
    }
}
