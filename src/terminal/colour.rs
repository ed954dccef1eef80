//! Background colours that a terminal can show.

use std::env;
use std::ffi::OsStr;

/// How many colours a terminal has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Colours {
    /// The 16 of ANSI, whose shades are the user's.
    Ansi,
    /// xterm's 256.
    Indexed,
    /// 24 bits.
    Rgb,
}

impl Colours {
    /// As the environment says: `COLORTERM` is `truecolor` or `24bit` where there are 24 bits; the name of a terminal in
    /// `TERM` ends in `-direct` for the same, and contains `256color` for 256. Nothing is known of others.
    pub fn of_terminal() -> Self {
        Self::from_environment(env::var_os("COLORTERM").as_deref(), env::var_os("TERM").as_deref())
    }

    fn from_environment(colorterm: Option<&OsStr>, term: Option<&OsStr>) -> Self {
        let colorterm = colorterm.unwrap_or_default().to_string_lossy().to_lowercase();
        let term = term.unwrap_or_default().to_string_lossy();
        if ["truecolor", "24bit"].contains(&colorterm.as_str()) || term.ends_with("-direct") {
            Colours::Rgb
        } else if term.contains("256color") {
            Colours::Indexed
        } else {
            Colours::Ansi
        }
    }
}

/// The most similar colour of xterm's 256, as red, green, blue go: of the cube of six levels each, or of the greys. The
/// first 16 are left out, since every user has others, and so are those that are `taken`.
pub fn nearest_indexed((r, g, b): (u8, u8, u8), taken: &[u8]) -> u8 {
    const LEVELS: [u8; 6] = [0, 95, 135, 175, 215, 255];
    let cube = (0..216u8).map(|n| (16 + n, [n / 36, n / 6 % 6, n % 6].map(|level| LEVELS[usize::from(level)])));
    let greys = (0..24u8).map(|n| (232 + n, [8 + 10 * n; 3]));
    let distance = |(_, colour): &(u8, [u8; 3])| {
        let square = |(a, b): (u8, u8)| u32::from(a.abs_diff(b)).pow(2);
        colour.iter().copied().zip([r, g, b]).map(square).sum::<u32>()
    };
    cube.chain(greys).filter(|(index, _)| !taken.contains(index)).min_by_key(distance).map_or(16, |(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_tells_how_many_colours_there_are() {
        let colours =
            |colorterm: &str, term: &str| Colours::from_environment(Some(colorterm.as_ref()), Some(term.as_ref()));
        assert_eq!(colours("truecolor", "xterm"), Colours::Rgb);
        assert_eq!(colours("24bit", "screen-256color"), Colours::Rgb);
        assert_eq!(colours("", "xterm-direct"), Colours::Rgb);
        assert_eq!(colours("", "xterm-256color"), Colours::Indexed);
        assert_eq!(colours("yes", "tmux-256color"), Colours::Indexed);
        assert_eq!(colours("", "linux"), Colours::Ansi);
        assert_eq!(Colours::from_environment(None, None), Colours::Ansi);
    }

    #[test]
    fn the_nearest_of_256_is_in_the_cube_or_among_the_greys() {
        assert_eq!(nearest_indexed((255, 0, 0), &[]), 196);
        assert_eq!(nearest_indexed((0, 0, 0), &[]), 16);
        assert_eq!(nearest_indexed((80, 80, 80), &[]), 239);
        assert_eq!(nearest_indexed((86, 180, 233), &[]), 74);
        assert_ne!(nearest_indexed((86, 180, 233), &[74]), 74);
    }
}
