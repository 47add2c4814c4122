//! The chain of URLs that one fetch follows.

use super::policy::{Block, BlockReason, Policy, Target};

/// Redirects that one fetch follows at most.
pub const MAX_REDIRECTS: usize = 5;

/// One fetch on its way: the URL that is asked now and the redirects that led there. Each hop is
/// held to the whole policy, and its host is looked up once.
#[derive(Debug)]
pub struct Hops<'p> {
    policy: &'p Policy,
    current: Target,
    redirects: usize,
}

impl<'p> Hops<'p> {
    /// Starts with the URL that was asked for.
    pub fn start(policy: &'p Policy, url: &str) -> Result<Self, Block> {
        Ok(Self {
            policy,
            current: policy.screen(url)?,
            redirects: 0,
        })
    }

    /// The URL that is asked now.
    pub fn current(&self) -> &Target {
        &self.current
    }

    /// Goes on to what a `Location` header names. Refuses a hop too many, a URL that the policy
    /// refuses, and a step from `https` down to `http`, which gives up what the caller asked for.
    pub fn redirect(&mut self, location: &str) -> Result<(), Block> {
        if self.redirects == MAX_REDIRECTS {
            let detail = format_args!("more than {MAX_REDIRECTS} redirects");
            return Err(Block::new(BlockReason::TooManyRedirects, detail));
        }
        let from = self.current.url();
        let next = self.policy.screen_location(from, location)?;
        if from.scheme() == "https" && next.url().scheme() == "http" {
            let detail = "a redirect from https to http is not followed";
            return Err(Block::new(BlockReason::HttpsDowngrade, detail));
        }
        self.current = next;
        self.redirects += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follow(start: &str, locations: &[&str]) -> Result<String, BlockReason> {
        let policy = Policy::default();
        let mut hops = Hops::start(&policy, start).map_err(|block| block.reason)?;
        for location in locations {
            hops.redirect(location).map_err(|block| block.reason)?;
        }
        Ok(hops.current().url().to_string())
    }

    #[test]
    fn locations_are_read_relative_to_the_url_that_answered() {
        let last = follow(
            "http://a.example/x/y?q#f",
            &["z", "//b.example/k", "/l?m", "https://c.example"],
        );
        assert_eq!(last.unwrap(), "https://c.example/");
        assert_eq!(
            follow("http://a.example/x/y", &["z"]).unwrap(),
            "http://a.example/x/z"
        );
        // No authority, so no user name: a path may hold an `@`.
        assert!(follow("http://a.example/", &["/@user", "@user", "a:b/../@c"]).is_err());
        assert!(follow("http://a.example/", &["/@user", "@user"]).is_ok());
    }

    #[test]
    fn every_hop_is_held_to_the_policy() {
        use BlockReason as R;
        let start = "https://a.example/";
        for (location, reason) in [
            ("http://a.example/", R::HttpsDowngrade),
            ("https://169.254.169.254/", R::MetadataEndpoint),
            ("//127.0.0.1/", R::AddressNotGlobal),
            ("//localhost/", R::LocalName),
            ("//u@b.example/", R::UserinfoNotAllowed),
            ("https://@b.example/", R::UserinfoNotAllowed),
            ("//b.example:22/", R::PortNotAllowed),
            ("file:///etc/passwd", R::SchemeNotAllowed),
            ("gopher://b.example/", R::SchemeNotAllowed),
            ("/\\127.0.0.1/", R::InvalidUrl),
            ("//b.example/\n", R::InvalidUrl),
        ] {
            assert_eq!(follow(start, &[location]), Err(reason), "{location}");
            // Later hops are checked like the first.
            assert_eq!(follow(start, &["/2", location]), Err(reason), "{location}");
        }
    }

    #[test]
    fn a_chain_ends_after_five_redirects() {
        let path = ["/next"; MAX_REDIRECTS + 1];
        assert!(follow("http://a.example/", &path[1..]).is_ok());
        assert_eq!(
            follow("http://a.example/", &path),
            Err(BlockReason::TooManyRedirects)
        );
    }
}
