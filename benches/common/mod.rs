//! What benches share: memory in huge pages. The tables of millions of entries are read all over, and with pages of 4 KiB most
//! reads miss the TLB too. A service gets them as the benches do, from its environment.

/// Does `first` in the usual pages, then starts this bench again with `GLIBC_TUNABLES=glibc.malloc.hugetlb=1`, by which glibc
/// asks the kernel for huge ones, unless that variable is set: `GLIBC_TUNABLES= cargo bench ..` measures all in the
/// usual pages. Says which it is.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn take_huge_pages(first: impl FnOnce()) {
    use std::os::unix::process::CommandExt;
    const NAME: &str = "GLIBC_TUNABLES";
    const HUGE: &str = "glibc.malloc.hugetlb=1";
    let set = std::env::var_os(NAME);
    if set.as_ref().is_none_or(|set| set != HUGE) {
        first();
    }
    if let Some(set) = set {
        println!("pages: as {NAME}={} says", set.display());
        return;
    }
    let again = std::env::current_exe().map(|exe| {
        let mut again = std::process::Command::new(exe);
        again.args(std::env::args_os().skip(1));
        again.env(NAME, HUGE).exec()
    });
    println!("pages: the usual ones, for the bench can't start again: {again:?}");
}

/// Elsewhere the usual pages are measured.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn take_huge_pages(first: impl FnOnce()) {
    first();
    println!("pages: the usual ones");
}
