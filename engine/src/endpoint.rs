//! Where a disk is: a path of this host, or a grant on an agent.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result};

/// One side of a job, as an operator names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// An image file or block device of this host.
    Path(PathBuf),
    /// A grant of an agent behind a Unix socket: `unix:///PATH/SOCKET#NAME`.
    Unix {
        /// Path of the socket.
        socket: PathBuf,
        /// Name of the grant.
        name: String,
    },
    /// A grant of an agent on a loopback address: `tcp://127.0.0.1:PORT/NAME`.
    Tcp {
        /// Host and port.
        address: String,
        /// Name of the grant.
        name: String,
    },
}

/// Schemes of later releases, so that they are not taken for paths.
const LATER_SCHEMES: [&str; 6] = ["tls", "ssh", "nbd", "nbds", "nbd+unix", "azure-page"];

impl Endpoint {
    /// Name of the grant; `None` for a path.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Path(_) => None,
            Self::Unix { name, .. } | Self::Tcp { name, .. } => Some(name),
        }
    }

    /// Another grant of the same agent; a path stays the path it is.
    #[must_use]
    pub fn with_name(&self, other: String) -> Self {
        let mut endpoint = self.clone();
        if let Self::Unix { name, .. } | Self::Tcp { name, .. } = &mut endpoint {
            *name = other;
        }
        endpoint
    }
}

impl FromStr for Endpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let usage = |message: String| Error::new(ErrorKind::Usage, message);
        let Some((scheme, rest)) = text.split_once("://") else {
            return match text.is_empty() {
                true => Err(usage("an endpoint is empty".into())),
                false => Ok(Self::Path(PathBuf::from(text))),
            };
        };
        match scheme {
            "unix" => {
                let parts = rest
                    .split_once('#')
                    .filter(|(path, name)| path.starts_with('/') && !name.is_empty());
                let (socket, name) = parts.ok_or_else(|| {
                    usage(format!(
                        "`{text}` is not of the form unix:///PATH/SOCKET#NAME"
                    ))
                })?;
                Ok(Self::Unix {
                    socket: PathBuf::from(socket),
                    name: name.to_owned(),
                })
            }
            "tcp" => {
                let parts = rest
                    .split_once('/')
                    .filter(|(address, name)| !address.is_empty() && !name.is_empty());
                let (address, name) = parts.ok_or_else(|| {
                    usage(format!(
                        "`{text}` is not of the form tcp://127.0.0.1:PORT/NAME"
                    ))
                })?;
                Ok(Self::Tcp {
                    address: address.to_owned(),
                    name: name.to_owned(),
                })
            }
            later if LATER_SCHEMES.contains(&later) => Err(usage(format!(
                "{later}:// endpoints are not supported in this release"
            ))),
            _ => Err(usage(format!(
                "unknown scheme in `{text}`; known: unix://, tcp://, or a path"
            ))),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Unix { socket, name } => write!(f, "unix://{}#{name}", socket.display()),
            Self::Tcp { address, name } => write!(f, "tcp://{address}/{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: endpoints mean what the operator wrote. Method: each form there and back, and its near
    // misses.
    #[test]
    fn forms_round_trip_and_near_misses_are_usage_errors() {
        for text in [
            "/vm/web.vhdx",
            "web.vhdx",
            "unix:///run/fb.sock#web",
            "tcp://127.0.0.1:9000/web",
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "unix://run#web",
            "unix:///run",
            "tcp://127.0.0.1:9000",
            "tls://h:1/x",
            "ftp://x/y",
        ] {
            assert_eq!(
                text.parse::<Endpoint>().unwrap_err().kind(),
                ErrorKind::Usage,
                "{text}"
            );
        }
    }
}
