//! Class losses on a GPU: one warp a row; a wrong entry is refused by the next read and its row left unwritten.

use super::{ClassLoss, Classify, Softmax};
use crate::error::Result;
use crate::gpu::{Arg, Device, Gpu, Launch, blocks, extent};

/// Rows of a block, a warp each.
const ROWS: u32 = 4;

impl<D: Device> Classify for Gpu<D> {
    fn class_loss(&self, args: ClassLoss<'_, Self>) -> Result<()> {
        args.check()?;
        let (op, ClassLoss { logits, teacher, table, losses, dlogits, rows, classes }) =
            ("class_loss", args);
        let rows = extent(op, "rows", rows)?;
        let args = [
            logits.arg(),
            teacher.map_or(Arg::Pointer(0), |teacher| teacher.arg()),
            table.arg(),
            losses.arg(),
            dlogits.map_or(Arg::Pointer(0), |dlogits| dlogits.arg()),
            rows.into(),
            extent(op, "classes", classes)?.into(),
            self.refusal(),
        ];
        self.class_rows("classify_loss", rows, &args)
    }

    fn softmax(&self, args: Softmax<'_, Self>) -> Result<()> {
        args.check()?;
        let (op, Softmax { logits, probabilities, rows, classes }) = ("softmax", args);
        let rows = extent(op, "rows", rows)?;
        let classes = extent(op, "classes", classes)?;
        let args = [logits.arg(), probabilities.arg(), rows.into(), classes.into()];
        self.class_rows("classify_softmax", rows, &args)
    }
}

impl<D: Device> Gpu<D> {
    /// Queues a kernel with a warp for each row.
    fn class_rows(&self, kernel: &str, rows: u32, args: &[Arg]) -> Result<()> {
        let (grid, block) = ([blocks(rows, ROWS), 1, 1], [ROWS * 32, 1, 1]);
        self.launch(Launch { module: "classify", kernel, grid, block, shared: 0, args })
    }
}
