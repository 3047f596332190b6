//! Who is asking: bearer tokens (JWT, HS256) for users, a fixed token for operators, and where the secrets come from.
//!
//! Secrets come from the environment only, never from flags, which other users of the machine can read. A development
//! server on a loopback address may run without them.

use crate::cli::duration;
use anyhow::{Context, Result, anyhow, bail};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde::{Deserialize, Serialize};
use std::fmt::{self, Write};
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use stockade::types::UserId;

const JWT_SECRET: &str = "FLASH_SALE_JWT_SECRET";
const ADMIN_TOKEN: &str = "FLASH_SALE_ADMIN_TOKEN";
/// What `--insecure-dev` uses for both: anybody can read it here.
pub(crate) const DEV_SECRET: &str = "insecure-dev";
const SUBJECT_LEN_MAX: usize = 256;

/// `flash-sale token`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The user, as the `sub` of the token
    #[arg(long)]
    user: String,
    /// The user's rate class, 1 (suspected bot) to 4 (premium)
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=4))]
    tier: u8,
    /// How long the token is valid
    #[arg(long, default_value = "24h", value_parser = duration)]
    valid: Duration,
    /// Sign with the development secret if the environment has none
    #[arg(long)]
    insecure_dev: bool,
}

/// Prints a token.
pub(crate) fn run(args: &Args) -> Result<()> {
    let secret = jwt_secret(args.insecure_dev)?;
    println!(
        "{}",
        Signer::new(&secret).sign(&args.user, args.tier, args.valid)?
    );
    Ok(())
}

/// Both secrets of a server.
#[derive(Clone)]
pub(crate) struct Secrets {
    /// Signs users' tokens.
    pub(crate) jwt: String,
    /// Admits operators.
    pub(crate) admin: String,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets(..)")
    }
}

impl Secrets {
    /// From the environment, or the development ones where that is allowed.
    pub(crate) fn from_env(insecure_dev: bool, listen: IpAddr) -> Result<Self> {
        if insecure_dev && !listen.is_loopback() {
            bail!(
                "--insecure-dev uses secrets that everybody knows, so it listens on a loopback address only, \
                 not {listen}: take --listen 127.0.0.1:PORT, or set {JWT_SECRET} and {ADMIN_TOKEN}"
            );
        }
        Ok(Self {
            jwt: secret_from_env(JWT_SECRET, insecure_dev)?,
            admin: secret_from_env(ADMIN_TOKEN, insecure_dev)?,
        })
    }

    /// For a server that lives as long as one demo.
    pub(crate) fn random() -> Result<Self> {
        let mut bytes = [0; 64];
        getrandom::fill(&mut bytes)
            .map_err(|error| anyhow!("the system gives no random bytes: {error}"))?;
        let hex = |bytes: &[u8]| {
            bytes.iter().fold(String::new(), |mut text, byte| {
                // Writing to a String can't fail.
                let _ = write!(text, "{byte:02x}");
                text
            })
        };
        Ok(Self {
            jwt: hex(&bytes[..32]),
            admin: hex(&bytes[32..]),
        })
    }

    /// True for the operators' token. Takes as long for a wrong one as for the right one.
    pub(crate) fn is_admin(&self, token: &str) -> bool {
        let (ours, theirs) = (self.admin.as_bytes(), token.as_bytes());
        let differing = ours
            .iter()
            .zip(theirs)
            .fold(0, |bits, (a, b)| bits | (a ^ b));
        ours.len() == theirs.len() && differing == 0
    }
}

/// The secret that users' tokens are signed with.
pub(crate) fn jwt_secret(insecure_dev: bool) -> Result<String> {
    secret_from_env(JWT_SECRET, insecure_dev)
}

fn secret_from_env(name: &str, insecure_dev: bool) -> Result<String> {
    match std::env::var(name) {
        Ok(secret) if !secret.is_empty() => Ok(secret),
        _ if insecure_dev => Ok(DEV_SECRET.to_owned()),
        _ => bail!(
            "{name} is not set: export a long random text, say of `openssl rand -hex 32`, \
             or pass --insecure-dev to try things out on this machine"
        ),
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    sub: String,
    iat: u64,
    exp: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tier: Option<u8>,
}

/// Makes tokens.
pub(crate) struct Signer {
    key: EncodingKey,
    header: Header,
}

impl Signer {
    pub(crate) fn new(secret: &str) -> Self {
        Self {
            key: EncodingKey::from_secret(secret.as_bytes()),
            header: Header::new(Algorithm::HS256),
        }
    }

    /// A token for `user`, valid for so long from now.
    pub(crate) fn sign(&self, user: &str, tier: u8, valid: Duration) -> Result<String> {
        if user.is_empty() || user.len() > SUBJECT_LEN_MAX {
            bail!("a user has 1 to {SUBJECT_LEN_MAX} bytes");
        }
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let claims = Claims {
            sub: user.to_owned(),
            iat: now.as_secs(),
            exp: now.saturating_add(valid).as_secs(),
            tier: Some(tier),
        };
        encode(&self.header, &claims, &self.key).context("the token can't be signed")
    }
}

/// A token is not one of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenError {
    /// It was, but its time is over.
    Expired,
    /// Forged, damaged, or without what we need.
    Invalid,
}

/// Checks tokens.
pub(crate) struct Verifier {
    key: DecodingKey,
    validation: Validation,
}

impl Verifier {
    pub(crate) fn new(secret: &str) -> Self {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = 0;
        validation.set_required_spec_claims(&["exp", "sub"]);
        validation.validate_aud = false;
        Self {
            key: DecodingKey::from_secret(secret.as_bytes()),
            validation,
        }
    }

    /// Whose token it is.
    pub(crate) fn user(&self, token: &str) -> Result<UserId, TokenError> {
        let claims = decode::<Claims>(token, &self.key, &self.validation)
            .map_err(|error| match error.kind() {
                jsonwebtoken::errors::ErrorKind::ExpiredSignature => TokenError::Expired,
                _ => TokenError::Invalid,
            })?
            .claims;
        if claims.sub.is_empty() || claims.sub.len() > SUBJECT_LEN_MAX {
            return Err(TokenError::Invalid);
        }
        Ok(UserId::from_text(&claims.sub))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    #[test]
    fn a_token_names_its_user() {
        let token = Signer::new("s").sign("ann", 2, HOUR).expect("signs");
        assert_eq!(
            Verifier::new("s").user(&token),
            Ok(UserId::from_text("ann"))
        );
    }

    #[test]
    fn forged_expired_and_damaged_tokens_are_refused() {
        let verifier = Verifier::new("s");
        let forged = Signer::new("other").sign("ann", 2, HOUR).expect("signs");
        assert_eq!(verifier.user(&forged), Err(TokenError::Invalid));
        let expired = Signer::new("s")
            .sign("ann", 2, Duration::ZERO)
            .expect("signs");
        // Tokens count whole seconds: only time makes one expire.
        std::thread::sleep(Duration::from_millis(1_100));
        assert_eq!(verifier.user(&expired), Err(TokenError::Expired));
        assert_eq!(verifier.user("no.token.this"), Err(TokenError::Invalid));
        // {"alg":"none"} with a plain payload
        assert_eq!(
            verifier.user("eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbm4ifQ."),
            Err(TokenError::Invalid)
        );
    }

    #[test]
    fn development_secrets_stay_on_loopback() {
        let outside = "0.0.0.0".parse().expect("an address");
        let error = Secrets::from_env(true, outside).expect_err("not loopback");
        assert!(error.to_string().contains("loopback"), "{error}");
    }

    #[test]
    fn only_the_whole_admin_token_admits() {
        let secrets = Secrets {
            jwt: "j".into(),
            admin: "abc".into(),
        };
        assert!(secrets.is_admin("abc"));
        assert!(!secrets.is_admin("ab") && !secrets.is_admin("abd") && !secrets.is_admin(""));
    }
}
