//! The pseudorandom generator of the simulation: a seed results in the same choices on every machine.

/// A pseudorandom generator (SplitMix64; Steele, Lea and Flood 2014).
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// Creates the generator of a seed. Adjacent seeds result in unrelated choices.
    pub fn of_seed(seed: u64) -> Self {
        Rng(seed.wrapping_mul(0x2545_F491_4F6C_DD1D).wrapping_add(1))
    }

    /// Creates a generator whose seed comes from this generator.
    #[must_use]
    pub fn fork(&mut self) -> Rng {
        Rng(self.number())
    }

    /// The state, for the hash of a run.
    pub(super) fn state(&self) -> u64 {
        self.0
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number in 0..n; 0 if n is 0.
    pub fn below(&mut self, n: usize) -> usize {
        let n = u64::try_from(n.max(1)).unwrap_or(u64::MAX);
        usize::try_from(self.number() % n).unwrap_or_default()
    }

    /// `true` with this probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        let drawn = u32::try_from(self.number() >> 32).unwrap_or_default();
        f64::from(drawn) < probability * f64::from(u32::MAX)
    }

    /// A random element of a non-empty slice.
    pub fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        let index = self.below(of.len());
        of.get(index).cloned().expect("the slice is not empty")
    }

    /// Shuffles the slice.
    pub fn shuffle<T>(&mut self, of: &mut [T]) {
        for i in (1..of.len()).rev() {
            of.swap(i, self.below(i + 1));
        }
    }
}
