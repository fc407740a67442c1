//! Whether the web server would show the maintenance page, found out without closing a site.
//!
//! nginx prints its configuration; the rule for a customer is looked for in it. The page itself is `internal`: who asks for it from outside gets a
//! 404 with the headers of its own location. That answer, and nothing else, shows that the rule is in effect in the server that runs. Never: a
//! maintenance file made for a trial.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backup_core::config::Config;
use backup_core::customer::Customer;
use backup_core::error::{ErrorKind, Result};
use backup_core::process::Program;
use backup_core::progress::Cancel;

use super::configuration::find_program;
use super::customers::Customers;
use super::report::Report;

const NAME: &str = "site.nginx";
const LIMIT: Duration = Duration::from_secs(30);
const ONE_ANSWER: Duration = Duration::from_secs(5);
const CONFIGURATION_MAX: usize = 64 << 20;
const ANSWER_MAX: usize = 16 << 10;

/// A directive is in files that are included in files; more than that is a circle.
const DEPTH_MAX: usize = 32;

pub(super) fn check(config: &Config, customers: &Customers, cancel: &Cancel, report: &mut Report) {
    let Some(program) = config.site.nginx.first() else {
        return report.ok(NAME, "not asked");
    };
    if customers.all().is_empty() {
        return report.ok(NAME, "not asked: there is no customer yet");
    }
    if find_program(program).is_none() {
        return report.warning(
            NAME,
            format!("there is no program {program}, so that nobody knows whether visitors get the maintenance page"),
            "correct site.nginx; nginx = [] where another web server is in front of the sites",
        );
    }
    let printed = Program::new(config.site.nginx.iter().map(String::as_str)).and_then(|program| {
        program
            .arg("-T")
            .output(b"", CONFIGURATION_MAX, LIMIT, cancel)
    });
    let servers = match printed {
        Ok(printed) => servers(&String::from_utf8_lossy(&printed)),
        Err(e) if e.kind() == ErrorKind::Cancelled => return,
        Err(e) => {
            return report.error(
                NAME,
                &e,
                "mend its configuration until nginx -t is content, or correct site.nginx",
            );
        }
    };
    report.ok(
        NAME,
        format!("its configuration has {} servers", servers.len()),
    );
    let active = customers.all().iter().filter(|one| one.is_active());
    for customer in active {
        check_customer(config, customer, &servers, report);
    }
}

fn check_customer(config: &Config, customer: &Customer, servers: &[Server], report: &mut Report) {
    let name = format!("maintenance page of customer {}", customer.id);
    let file = config
        .customers
        .dir(customer.id)
        .join(&config.site.maintenance_file);
    let Some(server) = servers.iter().find(|server| server.asks_for(&file)) else {
        return report.failed(
            &name,
            format!(
                "no server of nginx asks for {}: during a restore visitors reach a shop that is being replaced",
                file.display()
            ),
            "include deploy/nginx/shophosting-maintenance.conf in his server, as it says, and reload nginx",
        );
    };
    let Some(page) = &server.page else {
        return report.failed(
            &name,
            "his server of nginx has no page for the status 503 (error_page and an internal location): visitors get nginx's own",
            "include deploy/nginx/shophosting-maintenance.conf in his server, as it says, and reload nginx",
        );
    };
    if let Err(why) = is_readable_by_all(&page.file) {
        return report.failed(
            &name,
            format!("{}: {why}", page.file.display()),
            "put deploy/nginx/__maintenance.html there, for every user to read",
        );
    }
    let (Some(address), true) = (server.address, page.has_retry_after) else {
        return report.ok(
            &name,
            "the rule is in nginx's configuration; whether it is in effect cannot be asked (it takes a server without TLS, and the \
             header Retry-After at the page)",
        );
    };
    match ask(address, &server.host, &page.uri) {
        Ok(answer) if answer.status == 404 && answer.has_retry_after => report.ok(
            &name,
            format!("nginx at {address} has the rule in effect"),
        ),
        Ok(answer) => report.failed(
            &name,
            format!(
                "nginx has the rule in its configuration, but the server at {address} does not act on it (asked for {}, it answers {})",
                page.uri, answer.status
            ),
            "reload nginx: nginx -s reload",
        ),
        Err(e) => report.failed(
            &name,
            format!("nginx does not answer at {address}: {e}"),
            "start nginx",
        ),
    }
}

/// Its workers are no root.
fn is_readable_by_all(file: &Path) -> Result<(), String> {
    match fs::metadata(file) {
        Ok(meta) if meta.is_file() && meta.permissions().mode() & 0o004 != 0 => Ok(()),
        Ok(_) => Err("nginx cannot read the maintenance page".to_owned()),
        Err(e) => Err(format!("there is no maintenance page: {e}")),
    }
}

/// What is to be known of one `server` of nginx.
#[derive(Debug, PartialEq)]
struct Server {
    /// The files that it answers with 503 for, once they are there.
    asked_for: Vec<PathBuf>,
    page: Option<Page>,
    /// Where it listens without TLS.
    address: Option<SocketAddr>,
    host: String,
}

#[derive(Debug, PartialEq)]
struct Page {
    uri: String,
    file: PathBuf,
    has_retry_after: bool,
}

impl Server {
    fn asks_for(&self, file: &Path) -> bool {
        self.asked_for.iter().any(|asked| asked == file)
    }

    fn of(directives: &[Directive]) -> Self {
        let expand = |text: &str| expand(text, directives);
        let mut asked_for = Vec::new();
        each(directives, &mut |directive: &Directive| {
            let condition = directive.argument("if");
            let file = condition
                .as_deref()
                .and_then(|text| text.strip_prefix("(-f ")?.strip_suffix(')'));
            let refuses = directive
                .block
                .iter()
                .any(|inner| inner.words == ["return", "503"]);
            if let (Some(file), true) = (file, refuses) {
                asked_for.push(PathBuf::from(expand(file.trim())));
            }
        });
        let names = named(directives, "server_name").next();
        let host = names.and_then(|words| words.get(1)).cloned();
        Self {
            asked_for,
            page: page(directives),
            address: address(directives),
            host: host
                .filter(|host| host.contains('.') && !host.contains(['*', '~']))
                .unwrap_or_else(|| "localhost".to_owned()),
        }
    }
}

/// The page that a server has for the status 503.
fn page(server: &[Directive]) -> Option<Page> {
    let uri = named(server, "error_page").find_map(|words| {
        let (uri, statuses) = words.get(1..)?.split_last()?;
        statuses
            .iter()
            .any(|status| status == "503")
            .then(|| uri.clone())
    })?;
    let location = server
        .iter()
        .find(|one| one.words == ["location", "=", uri.as_str()])?;
    let of_location = |name| {
        named(&location.block, name)
            .chain(named(server, name))
            .next()
    };
    let root = of_location("root")?.get(1)?;
    named(&location.block, "internal").next()?;
    Some(Page {
        file: PathBuf::from(format!("{}{uri}", expand(root, server))),
        has_retry_after: named(&location.block, "add_header")
            .any(|words| words.get(1).is_some_and(|name| name == "Retry-After")),
        uri,
    })
}

fn address(server: &[Directive]) -> Option<SocketAddr> {
    let mut listens = named(server, "listen").peekable();
    if listens.peek().is_none() {
        return Some((Ipv4Addr::LOCALHOST, 80).into());
    }
    listens
        .filter(|words| !words.iter().any(|word| word == "ssl"))
        .find_map(|words| parse_listen(words.get(1)?))
}

/// `80`, `*:80`, `127.0.0.1:80`, `127.0.0.1`, `[::]:80`; the address of all is that of this machine.
fn parse_listen(text: &str) -> Option<SocketAddr> {
    if let Ok(port) = text.parse::<u16>() {
        return Some((Ipv4Addr::LOCALHOST, port).into());
    }
    if let Some(port) = text.strip_prefix("*:") {
        return Some((Ipv4Addr::LOCALHOST, port.parse().ok()?).into());
    }
    let address = match text.parse::<SocketAddr>() {
        Ok(address) => address,
        Err(_) => {
            let bare = text.trim_start_matches('[').trim_end_matches(']');
            (bare.parse::<IpAddr>().ok()?, 80).into()
        }
    };
    let port = address.port();
    Some(match address.ip() {
        IpAddr::V4(all) if all.is_unspecified() => (Ipv4Addr::LOCALHOST, port).into(),
        IpAddr::V6(all) if all.is_unspecified() => (Ipv6Addr::LOCALHOST, port).into(),
        _ => address,
    })
}

/// The text with the variables that the server sets.
fn expand(text: &str, server: &[Directive]) -> String {
    let mut values: Vec<(&str, &str)> = named(server, "set")
        .filter_map(|words| Some((words.get(1)?.strip_prefix('$')?, words.get(2)?.as_str())))
        .collect();
    // The longest first: `$shop` is not the begin of `$shop_directory`.
    values.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
    let mut text = text.to_owned();
    for (name, value) in values {
        text = text
            .replace(&format!("${{{name}}}"), value)
            .replace(&format!("${name}"), value);
    }
    text
}

struct Answer {
    status: u16,
    has_retry_after: bool,
}

fn ask(address: SocketAddr, host: &str, uri: &str) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&address, ONE_ANSWER)?;
    stream.set_read_timeout(Some(ONE_ANSWER))?;
    stream.set_write_timeout(Some(ONE_ANSWER))?;
    let request = format!(
        "GET {uri} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: shophosting-backup\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut head = Vec::new();
    let mut piece = [0; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < ANSWER_MAX {
        match stream.read(&mut piece)? {
            0 => break,
            n => head.extend_from_slice(piece.get(..n).unwrap_or_default()),
        }
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let head = head.split("\r\n\r\n").next().unwrap_or_default();
    let status = head
        .split(' ')
        .nth(1)
        .filter(|_| head.starts_with("http/1."))
        .and_then(|status| status.parse().ok())
        .ok_or_else(|| std::io::Error::other("the answer is not HTTP"))?;
    Ok(Answer {
        status,
        has_retry_after: head.contains("\r\nretry-after:"),
    })
}

/// A directive of nginx, with what is in its braces.
#[derive(Debug, Default, PartialEq)]
struct Directive {
    words: Vec<String>,
    block: Vec<Directive>,
}

impl Directive {
    /// Its words after the first, where that is `name`, as they were written.
    fn argument(&self, name: &str) -> Option<String> {
        let (first, rest) = self.words.split_first()?;
        (first == name).then(|| rest.join(" "))
    }
}

/// The words of those directly here that have this name.
fn named<'a>(directives: &'a [Directive], name: &'a str) -> impl Iterator<Item = &'a Vec<String>> {
    directives
        .iter()
        .map(|directive| &directive.words)
        .filter(move |words| words.first().is_some_and(|first| first == name))
}

fn each(directives: &[Directive], see: &mut impl FnMut(&Directive)) {
    for directive in directives {
        see(directive);
        each(&directive.block, see);
    }
}

/// All servers of what `nginx -T` prints: each file of its configuration under a line with its name.
fn servers(printed: &str) -> Vec<Server> {
    let mut files: Vec<(PathBuf, String)> = Vec::new();
    for line in printed.lines() {
        let begins = line
            .strip_prefix("# configuration file ")
            .and_then(|name| name.strip_suffix(':'));
        if let Some(name) = begins {
            files.push((PathBuf::from(name), String::new()));
        } else if let Some((_, text)) = files.last_mut() {
            text.push_str(line);
            text.push('\n');
        }
    }
    let Some((main, text)) = files.first() else {
        return Vec::new();
    };
    let home = main.parent().unwrap_or(Path::new("/"));
    let directives = parse(text, &files, home, 0);
    let mut servers = Vec::new();
    each(&directives, &mut |directive: &Directive| {
        if directive.words == ["server"] {
            servers.push(Server::of(&directive.block));
        }
    });
    servers
}

/// The directives of a text, with those of the files that it includes in their place.
fn parse(text: &str, files: &[(PathBuf, String)], home: &Path, depth: usize) -> Vec<Directive> {
    let mut open = vec![Directive::default()];
    let mut words = Vec::new();
    for token in tokens(text) {
        match token {
            Token::Word(word) => words.push(word),
            Token::Open => open.push(Directive {
                words: std::mem::take(&mut words),
                block: Vec::new(),
            }),
            Token::End => {
                let words = std::mem::take(&mut words);
                let Some(inner) = open.last_mut() else { break };
                match words.as_slice() {
                    [include, pattern] if include == "include" && depth < DEPTH_MAX => {
                        let pattern = home.join(pattern);
                        for (_, text) in files.iter().filter(|(name, _)| matches(&pattern, name)) {
                            inner.block.extend(parse(text, files, home, depth + 1));
                        }
                    }
                    _ => inner.block.push(Directive {
                        words,
                        block: Vec::new(),
                    }),
                }
            }
            Token::Close => {
                if open.len() > 1
                    && let Some(done) = open.pop()
                    && let Some(outer) = open.last_mut()
                {
                    outer.block.push(done);
                }
            }
        }
    }
    open.into_iter()
        .next()
        .map(|top| top.block)
        .unwrap_or_default()
}

/// Whether a name is one that a pattern with `*` stands for, component by component.
fn matches(pattern: &Path, name: &Path) -> bool {
    let same = |(pattern, name): (&std::ffi::OsStr, &std::ffi::OsStr)| {
        let (pattern, name) = (pattern.to_string_lossy(), name.to_string_lossy());
        match pattern.split_once('*') {
            None => pattern == name,
            Some((begin, end)) => {
                name.len() + 1 >= pattern.len() && name.starts_with(begin) && name.ends_with(end)
            }
        }
    };
    pattern.iter().count() == name.iter().count() && pattern.iter().zip(name).all(same)
}

#[derive(Debug)]
enum Token {
    Word(String),
    Open,
    Close,
    End,
}

fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut word = String::new();
    let mut chars = text.chars();
    let flush = |word: &mut String, tokens: &mut Vec<Token>| {
        if !word.is_empty() {
            tokens.push(Token::Word(std::mem::take(word)));
        }
    };
    while let Some(c) = chars.next() {
        match c {
            '#' if word.is_empty() => {
                chars.by_ref().find(|c| *c == '\n');
            }
            '"' | '\'' if word.is_empty() => {
                while let Some(inner) = chars.next() {
                    match inner {
                        end if end == c => break,
                        '\\' => word.extend(chars.next()),
                        other => word.push(other),
                    }
                }
                tokens.push(Token::Word(std::mem::take(&mut word)));
            }
            // `${name}`
            '{' if word.ends_with('$') => {
                word.push('{');
                for inner in chars.by_ref() {
                    word.push(inner);
                    if inner == '}' {
                        break;
                    }
                }
            }
            '\\' => {
                word.push('\\');
                word.extend(chars.next());
            }
            '{' | '}' | ';' => {
                flush(&mut word, &mut tokens);
                tokens.push(match c {
                    '{' => Token::Open,
                    '}' => Token::Close,
                    _ => Token::End,
                });
            }
            space if space.is_whitespace() => flush(&mut word, &mut tokens),
            other => word.push(other),
        }
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = r#"nginx: the configuration file /etc/nginx/nginx.conf syntax is ok
# configuration file /etc/nginx/nginx.conf:
user www-data; # not root
http {
    log_format x '{"a": "$b"; }';
    include mime.types;
    include /etc/nginx/sites-enabled/*;
}
# configuration file /etc/nginx/sites-enabled/shop-7:
server {
    listen [::]:443 ssl;
    listen 8080;
    server_name shop-7.example www.shop-7.example;
    set $shop_directory /var/customers/customer-7;
    set $shop_port 8007;
    include snippets/maintenance.conf;
}
# configuration file /etc/nginx/snippets/maintenance.conf:
error_page 503 /__maintenance.html;
location / {
    if (-f $shop_directory/.maintenance) {
        return 503;
    }
    proxy_pass http://127.0.0.1:$shop_port;
}
location = /__maintenance.html {
    internal;
    root /usr/share/x;
    add_header Retry-After 120 always;
}
# configuration file /etc/nginx/sites-enabled/shop-8:
server { listen 443 ssl; server_name _; root /var/www;
    location ~ "^/a{2}$" { if (-f "${document_root}/x") { return 403; } } }
"#;

    #[test]
    fn the_rule_is_found_in_what_nginx_prints_for_the_customer_whose_it_is() {
        let servers = servers(PRINTED);
        let [seven, eight] = servers.as_slice() else {
            panic!("{servers:?}")
        };
        assert!(seven.asks_for(Path::new("/var/customers/customer-7/.maintenance")));
        assert!(!seven.asks_for(Path::new("/var/customers/customer-70/.maintenance")));
        assert_eq!(seven.address, Some(([127, 0, 0, 1], 8080).into()));
        assert_eq!(seven.host, "shop-7.example");
        let page = seven.page.as_ref().unwrap();
        assert_eq!(page.file, Path::new("/usr/share/x/__maintenance.html"));
        assert!(page.has_retry_after);
        assert!(eight.asked_for.is_empty() && eight.page.is_none() && eight.address.is_none());
    }

    #[test]
    fn addresses_are_those_at_which_this_machine_is_reached() {
        for (listen, address) in [
            ("80", Some("127.0.0.1:80")),
            ("*:81", Some("127.0.0.1:81")),
            ("0.0.0.0:82", Some("127.0.0.1:82")),
            ("[::]:83", Some("[::1]:83")),
            ("10.0.0.1:84", Some("10.0.0.1:84")),
            ("10.0.0.1", Some("10.0.0.1:80")),
            ("unix:/run/nginx.sock", None),
        ] {
            assert_eq!(
                parse_listen(listen),
                address.map(|text| text.parse().unwrap()),
                "{listen}"
            );
        }
    }
}
