//! The SKUs by name, as requests look them up. Readers never wait: the list is replaced whole when operators have
//! defined more.

use super::desk::Desk;
use super::problem::Problem;
use arc_swap::ArcSwap;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use stockade::types::{SkuId, SkuName};

/// See the module.
pub(crate) struct Catalogue {
    desk: Arc<Desk>,
    names: ArcSwap<Names>,
    growing: Mutex<()>,
}

/// The SKUs at one moment. A SKU that is known stays.
pub(crate) struct Names {
    ids: HashMap<String, SkuId>,
    names: Vec<SkuName>,
}

impl Catalogue {
    pub(crate) fn new(desk: Arc<Desk>) -> Self {
        Self {
            names: ArcSwap::from_pointee(Names::of(&desk)),
            desk,
            growing: Mutex::new(()),
        }
    }

    /// By its name as clients write it: white space around it does not count.
    pub(crate) fn id(&self, name: &str) -> Result<SkuId, Problem> {
        if let Some(&id) = self.names.load().ids.get(name.trim()) {
            return Ok(id);
        }
        let Some(id) = self.desk.sku(name) else {
            return Err(Problem::unknown_sku(name));
        };
        self.grow();
        Ok(id)
    }

    /// Those that are known now.
    pub(crate) fn names(&self) -> Arc<Names> {
        self.names.load_full()
    }

    /// Takes in what was defined meanwhile.
    pub(crate) fn grow(&self) {
        let _one_at_a_time = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        self.names.store(Arc::new(Names::of(&self.desk)));
    }
}

impl Names {
    fn of(desk: &Desk) -> Self {
        let skus = desk.skus();
        Self {
            ids: skus
                .iter()
                .map(|(id, name)| (name.as_str().to_owned(), *id))
                .collect(),
            names: skus.into_iter().map(|(_, name)| name).collect(),
        }
    }

    pub(crate) fn name(&self, id: SkuId) -> Option<&SkuName> {
        self.names.get(id.0 as usize)
    }

    /// All of them, in the desk's order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (SkuId, &SkuName)> {
        (0..).map(SkuId).zip(&self.names)
    }
}
