//! What a GPU could do at best: bytes over its bandwidth, operations over its peak, whichever takes longer.
//!
//! A bound and not a forecast: launches, waves that are not full, partial sums and what caches spare are not in it.

/// Which of a device's peaks counts for an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// Tensor cores, `bf16` operands, dense.
    Bf16,
    /// Tensor cores, `tf32` operands, dense.
    Tf32,
    /// Ordinary `f32` arithmetic.
    F32,
}

impl Unit {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Tf32 => "tf32",
            Self::F32 => "f32",
        }
    }
}

/// What one call does at least.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Work {
    /// Every input read once and every output written once; what grows by `+=` both.
    pub(super) bytes: f64,
    /// Floating-point operations; a multiply-add is two, an exponential, root or division one.
    pub(super) flop: f64,
    /// What most of them run on.
    pub(super) unit: Unit,
}

/// A device of the table, by its data sheet.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) name: &'static str,
    /// What the driver calls it: others of the family have other bandwidths and peaks.
    pub(super) reported: &'static str,
    /// Bytes a second.
    pub(super) bandwidth: f64,
    /// Operations a second.
    bf16: f64,
    tf32: f64,
    f32: f64,
    pub(super) source: &'static str,
}

/// The devices of the table.
pub(super) const MODELS: [Model; 3] = [
    Model {
        name: "A100",
        reported: "NVIDIA A100-SXM4-80GB",
        bandwidth: 2.039e12,
        bf16: 312e12,
        tf32: 156e12,
        f32: 19.5e12,
        source: "NVIDIA A100 80GB data sheet, SXM",
    },
    Model {
        name: "H100",
        reported: "NVIDIA H100 80GB HBM3",
        bandwidth: 3.35e12,
        bf16: 989e12,
        tf32: 494e12,
        f32: 67e12,
        source: "NVIDIA H100 data sheet, SXM; tensor cores without sparsity",
    },
    Model {
        name: "H200",
        reported: "NVIDIA H200",
        bandwidth: 4.8e12,
        bf16: 989e12,
        tf32: 494e12,
        f32: 67e12,
        source: "NVIDIA H200 data sheet, SXM; tensor cores without sparsity",
    },
];

/// The least time on a device, and what it is bound by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Bound {
    pub(super) seconds: f64,
    /// `bytes` or `flop`.
    pub(super) binds: &'static str,
}

impl Model {
    /// The device of the table that the driver calls so.
    pub(super) fn reported(name: &str) -> Option<&'static Self> {
        MODELS.iter().find(|model| model.reported == name)
    }

    /// Operations a second.
    pub(super) fn peak(&self, unit: Unit) -> f64 {
        match unit {
            Unit::Bf16 => self.bf16,
            Unit::Tf32 => self.tf32,
            Unit::F32 => self.f32,
        }
    }

    /// `max(bytes / bandwidth, flop / peak)`.
    pub(super) fn bound(&self, work: Work) -> Bound {
        let (memory, arithmetic) = (work.bytes / self.bandwidth, work.flop / self.peak(work.unit));
        if arithmetic > memory {
            Bound { seconds: arithmetic, binds: "flop" }
        } else {
            Bound { seconds: memory, binds: "bytes" }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slower_side_binds() {
        let [a100, h100, h200] = &MODELS;
        let close = |a: f64, b: f64| assert!((a / b - 1.0).abs() < 1e-3, "{a} for {b}");
        // 4096 x 4096 x 4096: 137.4 GFLOP and 100.7 MB.
        let work = Work { bytes: 100_663_296.0, flop: 137_438_953_472.0, unit: Unit::Bf16 };
        for (model, seconds) in [(a100, 440.5e-6), (h100, 138.97e-6), (h200, 138.97e-6)] {
            let bound = model.bound(work);
            assert_eq!(bound.binds, "flop");
            close(bound.seconds, seconds);
        }
        // The same bytes with little arithmetic.
        let work = Work { flop: 1e6, unit: Unit::F32, ..work };
        for (model, seconds) in [(a100, 49.37e-6), (h100, 30.05e-6), (h200, 20.97e-6)] {
            let bound = model.bound(work);
            assert_eq!(bound.binds, "bytes");
            close(bound.seconds, seconds);
        }
        // 195 GFLOP of ordinary arithmetic take 10 ms of an A100, on its tensor cores 0.6 or 1.3.
        for (unit, seconds) in [(Unit::F32, 10e-3), (Unit::Tf32, 1.25e-3), (Unit::Bf16, 0.625e-3)] {
            close(a100.bound(Work { bytes: 0.0, flop: 195e9, unit }).seconds, seconds);
        }
    }

    #[test]
    fn only_the_very_card_is_taken_for_it() {
        assert_eq!(Model::reported("NVIDIA H100 80GB HBM3").unwrap().name, "H100");
        for other in ["NVIDIA H100 PCIe", "NVIDIA A100-SXM4-40GB", "NVIDIA H200 NVL", ""] {
            assert!(Model::reported(other).is_none(), "{other}");
        }
    }
}
