//! What benches share: memory in huge pages. The tables of millions of entries are read all over, and with pages of 4 KiB most
//! reads miss the TLB too. A service gets them as the benches do, from its environment.

/// Starts this bench again with `GLIBC_TUNABLES=glibc.malloc.hugetlb=1`, by which glibc asks the kernel for huge pages, unless
/// that variable is set: `GLIBC_TUNABLES= cargo bench ..` measures with the pages that are usual. Says which it is.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn take_huge_pages() {
    use std::os::unix::process::CommandExt;
    const NAME: &str = "GLIBC_TUNABLES";
    let set = std::env::var_os(NAME);
    if let Some(set) = set {
        println!("pages: as {NAME}={} says", set.display());
        return;
    }
    let exe = std::env::current_exe();
    let error = exe.map(|exe| {
        let mut again = std::process::Command::new(exe);
        again.args(std::env::args_os().skip(1));
        again.env(NAME, "glibc.malloc.hugetlb=1").exec()
    });
    println!("pages: the usual ones, for the bench can't start again: {error:?}");
}

/// Elsewhere the allocator's own pages are measured.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn take_huge_pages() {
    println!("pages: the usual ones");
}
