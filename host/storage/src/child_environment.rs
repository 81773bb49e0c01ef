//! The environment of child processes: the variables that each program needs, and none of Refit's secrets.
//!
//! Refit's environment holds `ADMIN_TOKEN`, `GHCR_TOKEN` and the secrets of webhooks. `ssh` and credential helpers inherit only
//! the variables that this module lists, and the policy compiler inherits none.

use std::ffi::OsString;

/// Variables with which any program finds its files, its user and its language.
const COMMON: &[&str] = &[
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LANGUAGE",
    "TZ",
    "TERM",
    "TMPDIR",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "XDG_CACHE_HOME",
    "XDG_RUNTIME_DIR",
    "XDG_CONFIG_DIRS",
    "XDG_DATA_DIRS",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "LD_LIBRARY_PATH",
    // Windows and macOS.
    "SystemRoot",
    "SYSTEMROOT",
    "windir",
    "COMSPEC",
    "PATHEXT",
    "TEMP",
    "TMP",
    "USERPROFILE",
    "USERNAME",
    "APPDATA",
    "LOCALAPPDATA",
    "ProgramData",
    "ProgramFiles",
    "HOMEDRIVE",
    "HOMEPATH",
    "__CF_USER_TEXT_ENCODING",
];

/// Locales: `LC_ALL`, `LC_MESSAGES`, …
const COMMON_PREFIXES: &[&str] = &["LC_"];

/// A kind of child process, which determines its further variables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Child {
    /// `ssh`, and the programs that `~/.ssh/config` names (`ProxyCommand`): variables with their profiles and files.
    Ssh,
    /// A `docker-credential-…` program: helpers of clouds take their logins from the environment.
    CredentialHelper,
}

impl Child {
    fn names(self) -> &'static [&'static str] {
        match self {
            Self::Ssh => &[
                "SSH_AUTH_SOCK",
                "SSH_AGENT_PID",
                "KRB5CCNAME",
                "KRB5_CONFIG",
                "DISPLAY",
                "WAYLAND_DISPLAY",
                "GNUPGHOME",
                "GPG_TTY",
                "AWS_PROFILE",
                "AWS_REGION",
                "AWS_DEFAULT_REGION",
                "AWS_CONFIG_FILE",
                "AWS_SHARED_CREDENTIALS_FILE",
                "CLOUDSDK_CONFIG",
            ],
            Self::CredentialHelper => &[
                "DOCKER_CONFIG",
                "REGISTRY_AUTH_FILE",
                "DBUS_SESSION_BUS_ADDRESS",
                "DISPLAY",
                "WAYLAND_DISPLAY",
                "GNUPGHOME",
                "GPG_TTY",
                "GPG_AGENT_INFO",
                "KUBECONFIG",
                "GOOGLE_APPLICATION_CREDENTIALS",
                "IDENTITY_ENDPOINT",
                "IDENTITY_HEADER",
                "MSI_ENDPOINT",
                "MSI_SECRET",
            ],
        }
    }

    fn prefixes(self) -> &'static [&'static str] {
        match self {
            Self::Ssh => &[],
            Self::CredentialHelper => &[
                "PASSWORD_STORE_",
                "AWS_",
                "ECR_",
                "AZURE_",
                "ACR_",
                "ARM_",
                "CLOUDSDK_",
                "GOOGLE_",
                "GCE_",
                "OCI_",
                "ALIBABA_CLOUD_",
            ],
        }
    }

    fn needs(self, name: &str) -> bool {
        let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
        COMMON.contains(&name)
            || begins(COMMON_PREFIXES)
            || self.names().contains(&name)
            || begins(self.prefixes())
    }

    /// Returns the variables of Refit that this child gets, for a command with a cleared environment.
    pub fn environment(self) -> impl Iterator<Item = (OsString, OsString)> {
        std::env::vars_os()
            .filter(move |(name, _)| name.to_str().is_some_and(|name| self.needs(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn child_gets_no_refit_secrets() {
        for child in [Child::Ssh, Child::CredentialHelper] {
            for name in [
                "ADMIN_TOKEN",
                "ADMIN_TOKEN_FILE",
                "GHCR_TOKEN",
                "GHCR_USER",
                "GITHUB_WEBHOOK_SECRET",
                "REGISTRY_WEBHOOK_SECRET",
                "REFIT_SERVE__TOKEN_FILE",
                "DOCKER_HOST",
                "LD_PRELOAD",
                "ANY_OTHER",
            ] {
                assert!(!child.needs(name), "{child:?} gets {name}");
            }
            for name in ["PATH", "HOME", "LC_ALL", "HTTPS_PROXY"] {
                assert!(child.needs(name), "{child:?} misses {name}");
            }
        }
        assert!(
            Child::Ssh.needs("SSH_AUTH_SOCK") && !Child::CredentialHelper.needs("SSH_AUTH_SOCK")
        );
        assert!(
            Child::CredentialHelper.needs("AWS_SESSION_TOKEN")
                && !Child::Ssh.needs("AWS_SESSION_TOKEN")
        );
    }
}
