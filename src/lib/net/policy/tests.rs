use proptest::prelude::*;

use super::BlockReason as R;
use super::*;

fn policy(allow: &[&str]) -> Policy {
    Policy::new(AllowList::parse(allow).unwrap())
}

fn refusal(url: &str) -> Option<BlockReason> {
    policy(&[]).screen(url).err().map(|block| block.reason)
}

fn ips(answers: &[&str]) -> Vec<IpAddr> {
    answers.iter().map(|ip| ip.parse().unwrap()).collect()
}

/// What is decided about a URL whose host resolves to `answers`.
fn decide(allow: &[&str], url: &str, answers: &[&str]) -> Result<Vec<String>, BlockReason> {
    let target = policy(allow).screen(url).map_err(|block| block.reason)?;
    match target.decide(&ips(answers)) {
        Decision::Allow { connect } => Ok(connect.iter().map(ToString::to_string).collect()),
        Decision::Block(block) => Err(block.reason),
    }
}

#[test]
#[allow(clippy::too_many_lines)] // one table
fn hostile_urls_are_refused() {
    let long = format!("http://a.example/{}", "a".repeat(MAX_URL_BYTES));
    // Within the limit as text, beyond it once encoded.
    let swells = format!("http://a.example/{}", "é".repeat(MAX_URL_BYTES / 3));
    let label = format!("http://{}.example/", "a".repeat(64));
    for (url, reason) in [
        // Not URLs, or not absolute.
        ("", R::InvalidUrl),
        ("/etc/passwd", R::InvalidUrl),
        ("//a.example/", R::InvalidUrl),
        ("a.example", R::InvalidUrl),
        ("http://a.example:99999/", R::InvalidUrl),
        ("http://a.example:x/", R::InvalidUrl),
        ("http://a.example\\@127.0.0.1/", R::InvalidUrl),
        ("http:\\\\127.0.0.1\\", R::InvalidUrl),
        ("http://127.0.0.1\t/", R::InvalidUrl),
        ("ht\ntp://127.0.0.1/", R::InvalidUrl),
        ("http://a.example/\r\nHost: b", R::InvalidUrl),
        ("http://a.example/\0", R::InvalidUrl),
        (&long, R::UrlTooLong),
        (&swells, R::UrlTooLong),
        // Schemes.
        ("file:///etc/passwd", R::SchemeNotAllowed),
        ("ftp://a.example/", R::SchemeNotAllowed),
        ("gopher://127.0.0.1:6379/_INFO", R::SchemeNotAllowed),
        ("dict://127.0.0.1:11211/stat", R::SchemeNotAllowed),
        ("data:text/html,x", R::SchemeNotAllowed),
        ("javascript:alert(1)", R::SchemeNotAllowed),
        ("jar:http://a.example!/", R::SchemeNotAllowed),
        ("ws://a.example/", R::SchemeNotAllowed),
        ("unix:/var/run/docker.sock", R::SchemeNotAllowed),
        // User names and passwords.
        ("http://user@a.example/", R::UserinfoNotAllowed),
        ("http://user:pw@a.example/", R::UserinfoNotAllowed),
        ("http://:pw@a.example/", R::UserinfoNotAllowed),
        ("http://@a.example/", R::UserinfoNotAllowed),
        ("http://a.example@127.0.0.1/", R::UserinfoNotAllowed),
        ("http://a.example:80@127.0.0.1/", R::UserinfoNotAllowed),
        ("http://127.0.0.1%2f@a.example/", R::UserinfoNotAllowed),
        // Hosts that are none.
        ("http://", R::InvalidHost),
        ("http://?x", R::InvalidHost),
        ("http://a..example/", R::InvalidHost),
        ("http://a.example../", R::InvalidHost),
        ("http://./", R::InvalidHost),
        ("http://a!b.example/", R::InvalidHost),
        (&label, R::InvalidHost),
        ("http://127.0.0.1%00.a.example/", R::InvalidHost),
        ("http://a b.example/", R::InvalidHost),
        ("http://256.256.256.256/", R::InvalidHost),
        ("http://4294967296/", R::InvalidHost),
        ("http://127.0.0.1.1/", R::InvalidHost),
        ("http://[fe80::1%25eth0]/", R::InvalidHost),
        ("http://[fe80::1%eth0]/", R::InvalidHost),
        ("http://[::1", R::InvalidHost),
        ("http://xn--a/", R::InvalidHost),
        // Spellings of 127.0.0.1 and its neighbours.
        ("http://127.0.0.1/", R::AddressNotGlobal),
        ("http://127.1/", R::AddressNotGlobal),
        ("http://127.0.1/", R::AddressNotGlobal),
        ("http://2130706433/", R::AddressNotGlobal),
        ("http://0x7f000001/", R::AddressNotGlobal),
        ("http://0x7F.0x0.0x0.0x1/", R::AddressNotGlobal),
        ("http://0177.0.0.1/", R::AddressNotGlobal),
        ("http://017700000001/", R::AddressNotGlobal),
        ("http://0177.0x0.1/", R::AddressNotGlobal),
        ("http://127.0.0.1./", R::AddressNotGlobal),
        ("http://%31%32%37.0.0.1/", R::AddressNotGlobal),
        ("http://127。0。0。1/", R::AddressNotGlobal),
        ("http://①②⑦.⓪.⓪.①/", R::AddressNotGlobal),
        ("http:127.0.0.1/", R::AddressNotGlobal),
        ("http:///127.0.0.1/", R::AddressNotGlobal),
        ("HTTP://127.0.0.1/", R::AddressNotGlobal),
        (" http://127.0.0.1/ ", R::AddressNotGlobal),
        ("http://127.0.0.1#@a.example/", R::AddressNotGlobal),
        ("http://127.0.0.1?@a.example/", R::AddressNotGlobal),
        ("http://0/", R::AddressNotGlobal),
        ("http://0.0.0.0/", R::AddressNotGlobal),
        ("https://10.0.0.1/", R::AddressNotGlobal),
        ("https://192.168.1.1/", R::AddressNotGlobal),
        ("http://[::]/", R::AddressNotGlobal),
        ("http://[::1]/", R::AddressNotGlobal),
        ("http://[0:0:0:0:0:0:0:1]/", R::AddressNotGlobal),
        ("http://[::ffff:127.0.0.1]/", R::AddressNotGlobal),
        ("http://[::ffff:7f00:1]/", R::AddressNotGlobal),
        ("http://[64:ff9b::10.0.0.1]/", R::AddressNotGlobal),
        ("http://[2002:7f00:1::]/", R::AddressNotGlobal),
        ("http://[fd00::1]/", R::AddressNotGlobal),
        // Metadata services.
        (
            "http://169.254.169.254/latest/meta-data/",
            R::MetadataEndpoint,
        ),
        ("http://2852039166/", R::MetadataEndpoint),
        ("http://0xA9FEA9FE/", R::MetadataEndpoint),
        ("http://169.254.43518/", R::MetadataEndpoint),
        ("http://[::ffff:169.254.169.254]/", R::MetadataEndpoint),
        ("http://[64:ff9b::a9fe:a9fe]/", R::MetadataEndpoint),
        ("http://[fd00:ec2::254]/", R::MetadataEndpoint),
        ("http://168.63.129.16/", R::MetadataEndpoint),
        ("http://100.100.100.200/", R::MetadataEndpoint),
        ("http://metadata.google.internal/", R::MetadataEndpoint),
        ("http://METADATA.google.INTERNAL./", R::MetadataEndpoint),
        ("http://metadata.goog/", R::MetadataEndpoint),
        ("http://metadata/", R::MetadataEndpoint),
        // Names of this machine and its network.
        ("http://localhost/", R::LocalName),
        ("http://LOCALHOST./", R::LocalName),
        ("http://a.localhost/", R::LocalName),
        ("http://ｌｏｃａｌｈｏｓｔ/", R::LocalName),
        ("http://printer.local/", R::LocalName),
        ("http://db.prod.internal/", R::LocalName),
        ("http://localhost.localdomain/", R::LocalName),
        ("http://nas.home.arpa/", R::LocalName),
        // Ports.
        ("http://127.0.0.1:6379/", R::AddressNotGlobal),
        ("http://a.example:22/", R::PortNotAllowed),
        ("http://a.example:25/", R::PortNotAllowed),
        ("http://a.example:6379/", R::PortNotAllowed),
        ("http://a.example:0/", R::PortNotAllowed),
        ("https://a.example:9092/", R::PortNotAllowed),
        ("http://8.8.8.8:53/", R::PortNotAllowed),
    ] {
        assert_eq!(refusal(url), Some(reason), "{url}");
    }
}

#[test]
fn ordinary_urls_pass() {
    for (url, normal) in [
        ("http://a.example", "http://a.example/"),
        ("HTTPS://A.Example./x?y=1#z", "https://a.example/x?y=1"),
        ("http://a.example:8080/@me", "http://a.example:8080/@me"),
        ("https://a.example:443/?u=a@b", "https://a.example/?u=a@b"),
        ("http://bücher.example/", "http://xn--bcher-kva.example/"),
        ("http://mylocal/", "http://mylocal/"),
        (
            "http://notlocalhost.example/",
            "http://notlocalhost.example/",
        ),
        ("http://internal.example/", "http://internal.example/"),
        ("http://8.8.8.8/", "http://8.8.8.8/"),
        ("http://134744072/", "http://8.8.8.8/"),
        ("http://[2606:4700::1]/", "http://[2606:4700::1]/"),
    ] {
        let target = policy(&[]).screen(url).unwrap();
        assert_eq!(target.url().as_str(), normal, "{url}");
    }
}

#[test]
fn every_answer_of_the_resolver_must_be_global() {
    let url = "https://a.example/";
    assert_eq!(
        decide(&[], url, &["8.8.8.8", "2606:4700::1"]).unwrap(),
        ["8.8.8.8:443", "[2606:4700::1]:443"]
    );
    for bad in ["127.0.0.1", "10.1.2.3", "::1", "::ffff:8.8.8.8", "fe80::1"] {
        for answers in [[bad, "8.8.8.8"], ["8.8.8.8", bad]] {
            assert_eq!(
                decide(&[], url, &answers),
                Err(R::AddressNotGlobal),
                "{bad}"
            );
        }
    }
    assert_eq!(
        decide(&[], url, &["8.8.8.8", "169.254.169.254"]),
        Err(R::MetadataEndpoint)
    );
    assert_eq!(decide(&[], url, &[]), Err(R::NameNotResolved));
}

#[test]
fn a_host_that_is_an_address_needs_no_answers() {
    assert_eq!(decide(&[], "http://8.8.8.8/", &[]).unwrap(), ["8.8.8.8:80"]);
    assert_eq!(
        decide(&[], "http://8.8.8.8/", &["10.0.0.1"]).unwrap(),
        ["8.8.8.8:80"]
    );
}

#[test]
fn a_listed_host_may_have_any_address_and_port() {
    let allow = &["intra.example", "localhost:81", "127.0.0.1", "[::1]:9000"];
    let some = |allow, url, ip: &str| decide(allow, url, &[ip]).is_ok();
    assert!(some(allow, "http://intra.example:1234/", "10.0.0.1"));
    assert!(some(allow, "http://localhost:81/", "127.0.0.1"));
    assert!(some(allow, "http://127.0.0.1:38123/", "127.0.0.1"));
    assert!(some(allow, "http://[::1]:9000/", "::1"));
    // The exception is of that host and port alone.
    assert_eq!(
        decide(allow, "http://localhost:80/", &["127.0.0.1"]),
        Err(R::LocalName)
    );
    assert_eq!(
        decide(allow, "http://[::1]/", &[]),
        Err(R::AddressNotGlobal)
    );
    assert_eq!(
        decide(allow, "http://127.0.0.2/", &[]),
        Err(R::AddressNotGlobal)
    );
    assert_eq!(
        decide(allow, "http://b.example/", &["127.0.0.1"]),
        Err(R::AddressNotGlobal)
    );
    // The other rules stay.
    assert_eq!(
        decide(allow, "ftp://127.0.0.1/", &[]),
        Err(R::SchemeNotAllowed)
    );
    assert_eq!(
        decide(allow, "http://u@127.0.0.1/", &[]),
        Err(R::UserinfoNotAllowed)
    );
}

#[test]
fn metadata_needs_an_entry_of_its_own() {
    let name = "http://metadata.google.internal/";
    let ip = "169.254.169.254";
    assert_eq!(
        decide(&["intra.example"], "http://intra.example/", &[ip]),
        Err(R::MetadataEndpoint)
    );
    assert_eq!(
        decide(
            &["intra.example", ip],
            "http://intra.example/",
            &["10.0.0.1", ip]
        ),
        Err(R::MetadataEndpoint)
    );
    assert_eq!(decide(&[ip], name, &[ip]), Err(R::MetadataEndpoint));
    assert!(decide(&[ip], "http://169.254.169.254/", &[]).is_ok());
    assert!(decide(&["metadata.google.internal"], name, &[ip]).is_ok());
    assert_eq!(
        decide(&["169.254.169.254:81"], "http://169.254.169.254/", &[]),
        Err(R::MetadataEndpoint)
    );
}

#[test]
fn a_refusal_says_what_it_refused() {
    let block = policy(&[]).screen("http://0x7f.1/").unwrap_err();
    assert_eq!(
        block.to_string(),
        "address_not_global: 127.0.0.1: Loopback (RFC 1122)"
    );
    let target = policy(&[]).screen("http://a.example/").unwrap();
    let Decision::Block(block) = target.decide(&ips(&["8.8.8.8", "::ffff:10.0.0.1"])) else {
        panic!("a private address was allowed");
    };
    assert_eq!(
        block.detail,
        "a.example has the address ::ffff:10.0.0.1: IPv4-mapped form of 10.0.0.1, Private-Use (RFC 1918)"
    );
}

proptest! {
    /// Whatever the text, what passes is http(s) without user name, and allows global addresses
    /// only.
    #[test]
    fn what_passes_is_harmless(
        text in "(https?|ftp|HTTP):?/{0,3}[a-z0-9@:.%\\[\\]\\\\#?/ x-]{0,40}",
        answer in any::<u32>(),
    ) {
        if let Ok(target) = policy(&[]).screen(&text) {
            let url = target.url();
            prop_assert!(matches!(url.scheme(), "http" | "https"));
            prop_assert!(url.username().is_empty() && url.password().is_none());
            prop_assert!(PORTS.contains(&url.port_or_known_default().unwrap()));
            let answers = [IpAddr::V4(answer.into())];
            if let Decision::Allow { connect } = target.decide(&answers) {
                prop_assert!(connect.iter().all(|to| non_global(to.ip()).is_none()));
                prop_assert!(connect.iter().all(|to| Some(to.port()) == url.port_or_known_default()));
            }
            // Screening is stable: what it made passes unchanged.
            let again = policy(&[]).screen(url.as_str()).unwrap();
            prop_assert_eq!(again.url(), url);
        }
    }

    #[test]
    fn any_text_is_answered(text in any::<String>()) {
        let _ = policy(&["a.example"]).screen(&text);
    }
}
