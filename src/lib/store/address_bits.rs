//! Addresses and networks as text that the gate script can compare. Pure.

use std::net::IpAddr;

use ipnet::IpNet;

/// An address as the gate compares it: its family and its bits. Lua has no numbers of 128 bits, and so
/// being in a network is beginning with its text.
pub fn address_bits(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(v4) => format!("4:{:032b}", u32::from(v4)),
        IpAddr::V6(v6) => format!("6:{:0128b}", u128::from(v6)),
    }
}

/// A network as the gate compares it: what the text of each of its addresses begins with.
pub fn network_bits(network: &IpNet) -> String {
    let mut bits = address_bits(network.network());
    bits.truncate(2 + usize::from(network.prefix_len()));
    bits
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_address_begins_with_its_networks_and_no_others(
            network: u32, bits in 0_u8..=32, address: u32, near in 0_u8..=32,
        ) {
            let network = IpNet::new(IpAddr::V4(network.into()), bits).unwrap();
            // Half of the addresses share a prefix with the network.
            let base = match network.network() { IpAddr::V4(v4) => u32::from(v4), IpAddr::V6(_) => 0 };
            let mask = u32::MAX.checked_shr(near.into()).unwrap_or(0);
            for address in [address, (base & !mask) | (address & mask)] {
                let address = IpAddr::V4(address.into());
                let begins = address_bits(address).starts_with(&network_bits(&network));
                prop_assert_eq!(begins, network.contains(&address));
            }
        }

        #[test]
        fn families_do_not_mix(v6: u128, v4: u32) {
            let any4: IpNet = "0.0.0.0/0".parse().unwrap();
            let any6: IpNet = "::/0".parse().unwrap();
            let v4 = address_bits(IpAddr::V4(v4.into()));
            prop_assert!(v4.starts_with(&network_bits(&any4)) && !v4.starts_with(&network_bits(&any6)));
            let v6: std::net::Ipv6Addr = v6.into();
            prop_assume!(v6.to_ipv4_mapped().is_none());
            prop_assert!(address_bits(v6.into()).starts_with(&network_bits(&any6)));
        }
    }
}
