//! Encrypted connections, to servers whose certificate is vouched for: where the URL says `sslmode=require`.
//!
//! Other modes don't encrypt: one that does if it happens to be possible keeps nobody out who sits in between.

use super::PostgresOptions;
use super::session::fatal;
use crate::store::StoreError;

#[cfg(not(feature = "postgres-tls"))]
pub(super) use tokio_postgres::NoTls as Tls;
#[cfg(feature = "postgres-tls")]
pub(super) use tokio_postgres_rustls::MakeRustlsConnect as Tls;

/// What checks the server's certificate.
///
/// # Errors
/// `Fatal` if there is nothing to check it by.
#[cfg(feature = "postgres-tls")]
pub(super) fn checked(options: &PostgresOptions) -> Result<Tls, StoreError> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    use rustls::{ClientConfig, RootCertStore};
    use std::sync::Arc;

    let certificates = match &options.tls_roots {
        Some(file) => {
            let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
            let read: Result<Vec<_>, _> = read;
            read.map_err(|error| {
                let file = file.display();
                fatal(format!(
                    "no root certificates can be read from {file}: {error}"
                ))
            })?
        }
        None => rustls_native_certs::load_native_certs().certs,
    };
    let mut roots = RootCertStore::empty();
    if roots.add_parsable_certificates(certificates).0 == 0 {
        return Err(fatal(
            "no root certificate is known to check the PostgreSQL server by: name a file with `tls_roots`",
        ));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|error| fatal(format!("TLS can't be set up: {error}")))?;
    Ok(Tls::new(
        config.with_root_certificates(roots).with_no_client_auth(),
    ))
}

/// # Errors
/// `Fatal`, always: it names the feature.
#[cfg(not(feature = "postgres-tls"))]
pub(super) fn checked(_: &PostgresOptions) -> Result<Tls, StoreError> {
    Err(fatal(
        "the PostgreSQL URL says sslmode=require: build with the feature `postgres-tls`",
    ))
}

/// Whether a server was not vouched for: trying again changes nothing.
#[cfg(feature = "postgres-tls")]
pub(super) fn is_distrusted(error: &tokio_postgres::Error) -> bool {
    use std::error::Error;
    let cause = error
        .source()
        .and_then(|cause| cause.downcast_ref::<std::io::Error>());
    let cause = cause.and_then(std::io::Error::get_ref);
    let cause = cause.and_then(|cause| cause.downcast_ref::<rustls::Error>());
    matches!(cause, Some(rustls::Error::InvalidCertificate(_)))
}

/// Whether a server was not vouched for: nobody asks for that.
#[cfg(not(feature = "postgres-tls"))]
pub(super) fn is_distrusted(_: &tokio_postgres::Error) -> bool {
    false
}
