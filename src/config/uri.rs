//! Connection strings, which hold passwords and therefore never print themselves.

use std::fmt;

/// A MongoDB connection string. `Display` and `Debug` show the scheme, the hosts and the database:
/// neither the credentials nor the options, some of which are secrets too.
#[derive(Clone, PartialEq, Eq)]
pub struct Uri(String);

impl Uri {
    /// Takes a connection string.
    ///
    /// # Errors
    /// What is wrong with it, in words that do not repeat it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let rest = text
            .strip_prefix("mongodb://")
            .or_else(|| text.strip_prefix("mongodb+srv://"))
            .ok_or("a connection string begins with `mongodb://` or `mongodb+srv://`")?;
        let (location, options) = rest.split_once('?').unwrap_or((rest, ""));
        if options.contains('@') && !location.contains('@') {
            // A `?` in a password would otherwise make half of it look like the host.
            return Err(
                "an `@` follows the `?`; in a password, write `?` as %3F and `@` as %40".to_owned()
            );
        }
        let uri = Self(text.to_owned());
        let ports = uri.parts().hosts.split(',').filter_map(|host| {
            // The colons of `[::1]` are no port's.
            host.rsplit(']').next().unwrap_or(host).split_once(':').map(|(_, port)| port)
        });
        if ports.into_iter().any(|port| port.parse::<u16>().is_err()) {
            // In practice `user:password` without the `@host` behind it, which must not be printed.
            return Err("what follows the `:` of a host is no port; a password is followed by `@`"
                .to_owned());
        }
        if rest.is_empty() || uri.parts().hosts.is_empty() {
            return Err("the connection string names no host".to_owned());
        }
        Ok(uri)
    }

    /// The whole string, for the driver alone.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// True when it holds a password, or anything else before an `@`.
    pub fn has_credentials(&self) -> bool {
        self.parts().has_credentials
    }

    /// The database that it names, if any.
    pub fn database(&self) -> Option<&str> {
        Some(self.parts().database).filter(|name| !name.is_empty())
    }

    /// True when the connection is encrypted: `mongodb+srv`, unless switched off, or `tls=true`.
    pub fn uses_tls(&self) -> bool {
        let options =
            self.0.split_once('?').map_or("", |(_, options)| options).to_ascii_lowercase();
        let says = |value: &str| {
            options
                .split('&')
                .any(|option| option == format!("tls={value}") || option == format!("ssl={value}"))
        };
        says("true") || (self.0.starts_with("mongodb+srv://") && !says("false"))
    }

    /// The words that must not appear in any output: user name, password, and the option values.
    pub fn secrets(&self) -> Vec<&str> {
        let rest = self.rest();
        let authority_end = rest.find('/').unwrap_or(rest.len());
        let mut secrets = Vec::new();
        if let Some(at) = rest[..authority_end].rfind('@') {
            secrets.extend(rest[..at].split(':'));
        }
        secrets
    }

    fn rest(&self) -> &str {
        self.0.split_once("://").map_or("", |(_, rest)| rest)
    }

    fn parts(&self) -> Parts<'_> {
        let rest = self.rest();
        // An unescaped `@` or `/` in a password is wrong, but must not print half of the password:
        // everything up to the last `@` before the options is taken for credentials.
        let before_options = rest.split('?').next().unwrap_or(rest);
        let (has_credentials, location) = match before_options.rfind('@') {
            Some(at) => (true, &before_options[at + 1..]),
            None => (false, before_options),
        };
        let (hosts, database) = location.split_once('/').unwrap_or((location, ""));
        Parts { has_credentials, hosts, database }
    }
}

struct Parts<'a> {
    has_credentials: bool,
    hosts: &'a str,
    database: &'a str,
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.0.split_once("://").map_or("mongodb", |(scheme, _)| scheme);
        let parts = self.parts();
        write!(f, "{scheme}://{}", parts.hosts)?;
        if !parts.database.is_empty() {
            write!(f, "/{}", parts.database)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The address of a web hook or a heartbeat. Such addresses often carry a token, so `Display` and `Debug`
/// show scheme and host only.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpUrl(String);

impl HttpUrl {
    /// Takes an address.
    ///
    /// # Errors
    /// What is wrong with it, in words that do not repeat it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
        match rest {
            None => Err("a URL begins with http:// or https://".to_owned()),
            Some(rest) if rest.starts_with(['/', '?', '#']) || rest.is_empty() => {
                Err("the URL names no host".to_owned())
            }
            Some(_) if text.chars().any(|c| c.is_whitespace() || c.is_control()) => {
                Err("a URL holds no spaces".to_owned())
            }
            Some(_) => Ok(Self(text.to_owned())),
        }
    }

    /// The whole address, for the request alone.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, rest) = self.0.split_once("://").unwrap_or(("http", ""));
        let authority = rest.split(['/', '?', '#']).next().unwrap_or("");
        // Up to the last `@`, as in a connection string.
        let host = authority.rsplit('@').next().unwrap_or("");
        write!(f, "{scheme}://{host}")
    }
}

impl fmt::Debug for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_web_address_shows_its_host_only() {
        for text in ["https://hooks.example/T0/s3cret", "https://ann:s3cret@hooks.example?k=s3cret"]
        {
            assert_eq!(format!("{:?}", HttpUrl::parse(text).unwrap()), "https://hooks.example");
        }
        for text in ["s3cret", "ftp://s3cret", "https://", "https:///s3cret", "http://h/s3 cret"] {
            assert!(!HttpUrl::parse(text).unwrap_err().contains("s3cret"));
        }
    }

    #[test]
    fn a_uri_never_shows_its_credentials_or_options() {
        for (text, shown) in [
            (
                "mongodb://ann:s3cret@db.example:27017/shop?tls=true",
                "mongodb://db.example:27017/shop",
            ),
            ("mongodb+srv://ann:s3cret@c.mongodb.net", "mongodb+srv://c.mongodb.net"),
            ("mongodb://ann:s3/cret@h/db", "mongodb://h/db"),
            ("mongodb://ann:s3@cret@h", "mongodb://h"),
            ("mongodb://[::1]:27017,h:1/db", "mongodb://[::1]:27017,h:1/db"),
            ("mongodb://a,b,c/?replicaSet=rs&proxyPassword=s3cret", "mongodb://a,b,c"),
        ] {
            let uri = Uri::parse(text).unwrap();
            assert_eq!((uri.to_string(), format!("{uri:?}")), (shown.to_owned(), shown.to_owned()));
        }
    }

    #[test]
    fn what_is_no_connection_string_is_refused_without_repeating_it() {
        for text in [
            "",
            "s3cret",
            "http://s3cret",
            "mongodb://",
            "mongodb://ann:s3cret@",
            "mongodb://ann:s3?cret@h/db",
            "mongodb://ann:s3cret",
            "mongodb://h:27017,ann:s3cret/db",
        ] {
            assert!(!Uri::parse(text).unwrap_err().contains("s3cret"));
        }
    }
}
