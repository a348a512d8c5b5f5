//! Connection strings, which hold passwords and therefore never print themselves.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use super::{secret, uri_options};

/// Where a connection string comes from, for whoever must correct it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    #[default]
    Unknown,
    /// An environment variable, or a key of the configuration.
    Named(&'static str),
    /// A file, which may be renewed while the agent runs.
    File(PathBuf),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Unknown => f.write_str("the connection string"),
            Origin::Named(name) => f.write_str(name),
            Origin::File(path) => write!(f, "`{}`", path.display()),
        }
    }
}

/// A MongoDB connection string. `Display` and `Debug` show the scheme, the hosts and the database:
/// neither the credentials nor the options, some of which are secrets too.
#[derive(Clone)]
pub struct Uri {
    /// As the driver gets it: without what [`uri_options`] leaves out.
    text: String,
    ignored: Vec<String>,
    origin: Origin,
}

impl PartialEq for Uri {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Uri {}

/// Options that may change while the agent runs: who it is, and whom it trusts.
const RENEWABLE: &[&str] =
    &["tlsCAFile", "tlsCertificateKeyFile", "authSource", "authMechanism", "appName"];

impl Uri {
    /// Takes a connection string.
    ///
    /// # Errors
    /// What is wrong with it, in words that do not repeat it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.is_empty() {
            return Err("it is empty".to_owned());
        }
        let rest = text
            .strip_prefix("mongodb://")
            .or_else(|| text.strip_prefix("mongodb+srv://"))
            .ok_or("a connection string begins with `mongodb://` or `mongodb+srv://`")?;
        if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err("a connection string is one line without spaces".to_owned());
        }
        let (location, options) = rest.split_once('?').unwrap_or((rest, ""));
        if options.contains('@') && !location.contains('@') {
            // A `?` in a password would otherwise make half of it look like the host.
            return Err(
                "an `@` follows the `?`; in a password, write `?` as %3F and `@` as %40".to_owned()
            );
        }
        if let Some((credentials, _)) = location.rsplit_once('@')
            && !is_escaped(credentials)
        {
            return Err("user name or password hold what must be escaped (percent-encoded): write `%` as %25, `@` as %40, `:` as %3A, \
                        `/` as %2F, `?` as %3F, `#` as %23, `[` as %5B, `]` as %5D"
                .to_owned());
        }
        if let Some((credentials, _)) = location.rsplit_once('@') {
            whose(credentials)?;
        }
        let mut uri = Self { text: text.to_owned(), ignored: Vec::new(), origin: Origin::Unknown };
        let ports = uri.hosts().filter_map(|host| {
            // The colons of `[::1]` are no port's.
            host.rsplit(']').next().unwrap_or(host).split_once(':').map(|(_, port)| port)
        });
        if ports.into_iter().any(|port| !port.parse::<u16>().is_ok_and(|port| port > 0)) {
            // In practice `user:password` without the `@host` behind it, which must not be printed.
            return Err("what follows the `:` of a host is no port; a password is followed by `@`, and the \
                        address of IPv6 stands in `[…]`"
                .to_owned());
        }
        if rest.is_empty() || uri.parts().hosts.is_empty() {
            return Err("the connection string names no host".to_owned());
        }
        if uri.hosts().any(str::is_empty) {
            return Err("between two commas there is no host".to_owned());
        }
        if uri.is_srv() && (uri.hosts().count() > 1 || uri.parts().hosts.contains(':')) {
            return Err("`mongodb+srv://` goes with one host and no port: the name service tells the servers; to name \
                        them with their ports, write `mongodb://host:port,host:port`"
                .to_owned());
        }
        let sorted = uri_options::sort(options)?;
        let slash = if location.contains('/') || sorted.kept.is_empty() { "" } else { "/" };
        let scheme = text.len() - rest.len();
        uri.text = format!("{}{location}{slash}", &text[..scheme]);
        if !sorted.kept.is_empty() {
            uri.text = format!("{}?{}", uri.text, sorted.kept);
        }
        uri.ignored = sorted.ignored;
        if uri.option("directConnection") == Some("true") {
            if uri.is_srv() {
                return Err("`directConnection=true` does not go with `mongodb+srv://`".to_owned());
            }
            if uri.hosts().count() > 1 {
                return Err("`directConnection=true` goes with one host only".to_owned());
            }
        }
        Ok(uri)
    }

    /// Reads it from a file.
    ///
    /// # Errors
    /// What is wrong with the file or with what it holds, in words that do not repeat it.
    pub fn read(path: &Path) -> Result<Self, secret::ReadError> {
        let text = secret::read(path)?;
        let uri = Self::parse(&text).map_err(secret::ReadError::Malformed)?;
        Ok(uri.from(Origin::File(path.to_owned())))
    }

    /// The same, known to come from `origin`.
    #[must_use]
    pub fn from(self, origin: Origin) -> Self {
        Self { origin, ..self }
    }

    /// Where it comes from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Options that do nothing here although they say something, each with its reason.
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }

    /// The whole string, for the driver alone.
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// Its hosts, with their ports, as they are written.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        self.parts().hosts.split(',')
    }

    /// An option that the driver gets, by its name in MongoDB's manual.
    pub fn option(&self, name: &str) -> Option<&str> {
        let (_, options) = self.text.split_once('?')?;
        options
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .find_map(|(key, value)| (key == name).then_some(value))
    }

    /// A file that an option names.
    pub fn file(&self, option: &str) -> Option<PathBuf> {
        self.option(option).map(|value| PathBuf::from(decoded(value)))
    }

    /// True when the other one differs in who the agent is, and whom it trusts, at most: it leads to the same
    /// servers.
    pub fn leads_where(&self, other: &Self) -> bool {
        let place = |uri: &Self| {
            let options = uri.text.split_once('?').map_or("", |(_, options)| options);
            let mut options: Vec<String> = options
                .split('&')
                .filter(|pair| !RENEWABLE.contains(&pair.split('=').next().unwrap_or("")))
                .map(str::to_owned)
                .collect();
            options.sort();
            (uri.to_string(), options)
        };
        place(self) == place(other)
    }

    /// True when a name service tells its servers.
    pub fn is_srv(&self) -> bool {
        self.text.starts_with("mongodb+srv://")
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
        let says =
            |value: &str| self.option("tls") == Some(value) || self.option("ssl") == Some(value);
        says("true") || (self.is_srv() && !says("false"))
    }

    /// True when whoever sits between here and the server may be taken for it.
    pub fn trusts_anybody(&self) -> bool {
        ["tlsInsecure", "tlsAllowInvalidCertificates"]
            .iter()
            .any(|option| self.option(option) == Some("true"))
    }

    /// The words that must not appear in any output: user name and password, as they are written.
    pub fn secrets(&self) -> Vec<&str> {
        let location = self.rest().split('?').next().unwrap_or_default();
        let credentials = location.rsplit_once('@').map(|(credentials, _)| credentials);
        credentials.into_iter().flat_map(|both| both.split(':')).collect()
    }

    fn rest(&self) -> &str {
        self.text.split_once("://").map_or("", |(_, rest)| rest)
    }

    fn parts(&self) -> UriParts<'_> {
        let rest = self.rest();
        // An unescaped `@` or `/` in a password is wrong, but must not print half of the password:
        // everything up to the last `@` before the options is taken for credentials.
        let before_options = rest.split('?').next().unwrap_or(rest);
        let (has_credentials, location) = match before_options.rfind('@') {
            Some(at) => (true, &before_options[at + 1..]),
            None => (false, before_options),
        };
        let (hosts, database) = location.split_once('/').unwrap_or((location, ""));
        UriParts { has_credentials, hosts, database }
    }
}

/// Of user name and password: what stands in examples is neither, and no server says so.
fn whose(credentials: &str) -> Result<(), String> {
    let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
    if user.is_empty() {
        return Err("before the `@` there is no user name".to_owned());
    }
    let is_placeholder =
        |part: &str| part == "…" || part == "..." || (part.starts_with('<') && part.ends_with('>'));
    if is_placeholder(user) || is_placeholder(password) {
        return Err("user name or password are those of an example (`…`, `<password>`): put your own in their place, \
                    without the `<` and `>`"
            .to_owned());
    }
    Ok(())
}

/// True when user name and password hold nothing that a reader of the string would take for its end.
fn is_escaped(credentials: &str) -> bool {
    let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
    [user, password].into_iter().all(|part| {
        let is_hex = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        !part.contains(['@', ':', '/', '?', '#', '[', ']'])
            && part.split('%').skip(1).all(|after| after.get(..2).is_some_and(is_hex))
    })
}

/// For a part of a path, or a header: everything but the plainest characters as `%XX`.
pub(crate) fn encoded(text: &str) -> String {
    use std::fmt::Write;
    text.bytes().fold(String::new(), |mut path, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            path.push(char::from(byte));
        } else {
            let _ = write!(path, "%{byte:02X}");
        }
        path
    })
}

/// With `%2F` and the like written out.
pub(crate) fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('%') {
        bytes.extend_from_slice(before.as_bytes());
        let digits = after.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(digits.unwrap_or(b'%'));
        rest = if digits.is_some() { &after[2..] } else { after };
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8_lossy(&bytes).into_owned()
}

struct UriParts<'a> {
    has_credentials: bool,
    hosts: &'a str,
    database: &'a str,
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.text.split_once("://").map_or("mongodb", |(scheme, _)| scheme);
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
    fn what_is_encoded_fits_into_a_path_and_is_read_back() {
        let text = "{\"a\": \"ö/?#%\"}";

        assert_eq!(encoded(text), "%7B%22a%22%3A%20%22%C3%B6%2F%3F%23%25%22%7D");
        assert_eq!(decoded(&encoded(text)), text);
    }

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
            ("mongodb://ann:s3%2Fcret@h/db", "mongodb://h/db"),
            (
                "mongodb://Db1.Example,%2Ftmp%2Fmongodb-27017.sock/?w=0",
                "mongodb://Db1.Example,%2Ftmp%2Fmongodb-27017.sock",
            ),
            ("mongodb://[::1]:27017,h:1/db", "mongodb://[::1]:27017,h:1/db"),
            ("mongodb://a,b,c/?replicaSet=rs&appName=s3cret", "mongodb://a,b,c"),
        ] {
            let uri = Uri::parse(text).unwrap();
            assert_eq!((uri.to_string(), format!("{uri:?}")), (shown.to_owned(), shown.to_owned()));
        }
    }

    #[test]
    fn a_renewed_string_leads_to_the_same_servers_or_it_does_not() {
        let uri = Uri::parse("mongodb://ann:one@h:1/?replicaSet=rs&tls=true").unwrap();

        for (text, does) in [
            ("mongodb://bob:two@h:1/?tls=true&replicaSet=rs&tlsCAFile=%2Fca.pem", true),
            ("mongodb://ann:one@h:2/?replicaSet=rs&tls=true", false),
            ("mongodb://ann:one@h:1/?replicaSet=rs", false),
            ("mongodb://ann:one@h:1/?replicaSet=other&tls=true", false),
        ] {
            assert_eq!(uri.leads_where(&Uri::parse(text).unwrap()), does, "{text}");
        }
        let ca = Uri::parse("mongodb://h/?tlsCAFile=%2Fetc%2Fa%20b.pem").unwrap();
        assert_eq!(ca.file("tlsCAFile"), Some(PathBuf::from("/etc/a b.pem")));
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
            "mongodb://ann:s3/cret@h/db",
            "mongodb://ann:s3@cret@h",
            "mongodb://ann:s3:cret@h",
            "mongodb://ann:s3%cret@h",
            "mongodb://ann:s3 cret@h",
            "mongodb://ann@x:1?s3cret=2@h/db",
            "mongodb://ann@x:1?s3cret@h/db",
            "mongodb://h/?s3cret",
            "mongodb://h:0/?appName=s3cret",
            "mongodb://h,,i/?appName=s3cret",
            "mongodb://h,i/?appName=s3cret&directConnection=true",
            "mongodb+srv://h/?appName=s3cret&directConnection=true",
        ] {
            assert!(!Uri::parse(text).unwrap_err().contains("s3cret"));
        }
    }
}
