//! On the host's processors activations are `f32`: nothing is rounded, the products are [`Linear`]'s.

use super::{Backward, Forward, Wide};
use crate::backend::MatMut;
use crate::cpu::{Cpu, CpuBuf};
use crate::error::{Result, check_len};
use crate::linear::{self, Linear};

impl Wide for Cpu {
    fn act_room(&self, _: usize) -> usize {
        0
    }

    fn as_act<'a>(
        &self,
        src: &'a CpuBuf<f32>,
        _: &'a mut CpuBuf<f32>,
        len: usize,
    ) -> Result<&'a CpuBuf<f32>> {
        check_len("as_act", "src", len, src.len())?;
        Ok(src)
    }

    fn wide_forward(&self, args: Forward<'_, Self>) -> Result<()> {
        let shape = self.shape(args.weight);
        args.check(shape)?;
        let Forward { x, weight, bias, y, rows } = args;
        let y = MatMut::new(y, shape.out_dim);
        self.linear_forward(linear::Forward { x, weight, bias, residual: None, y, rows })
    }

    fn wide_backward(&self, args: Backward<'_, Self>) -> Result<()> {
        let shape = self.shape(args.weight);
        args.check(shape)?;
        let Backward { dy, weight, dx, rows } = args;
        let dx = MatMut::new(dx, shape.in_dim);
        self.linear_backward(linear::Backward { dy, weight, dx, accumulate: false, rows })
    }
}
