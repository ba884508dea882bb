#include <climits>
#include <exception>

#include "parallel/comm/mpi_engine.h"

namespace transmamba {
namespace {

using Kind = Call::Kind;

MPI_Datatype type_of(DType dtype) {
  switch (dtype) {
    case DType::f32: return MPI_FLOAT;
    case DType::f64: return MPI_DOUBLE;
    case DType::i32: return MPI_INT32_T;
    case DType::bf16: break;
  }
  fail("mpi", "no type of MPI's for {}", dtype);
}

class BareMpi : public BareCalls {
 public:
  explicit BareMpi(MPI_Comm of) { mpi_check(MPI_Comm_dup(of, &comm_), "MPI_Comm_dup"); }
  ~BareMpi() override {
    if (std::uncaught_exceptions() == 0) MPI_Comm_free(&comm_);
  }

  void make(const Call& call) override {
    std::byte* const out = call.out.raw();
    // MPI's way of saying that what goes in lies where what comes out goes.
    const auto in = [&](const std::byte* place) -> const void* {
      return call.in.raw() == place ? MPI_IN_PLACE : call.in.raw();
    };
    const MPI_Datatype type = type_of(call.out.dtype());
    const MPI_Op op = call.reduce == Reduce::max ? MPI_MAX : MPI_SUM;
    int rank = 0;
    MPI_Comm_rank(comm_, &rank);
    switch (call.kind) {
      case Kind::all_reduce: return must(MPI_Allreduce(in(out), out, count_of(call.out), type, op, comm_));
      case Kind::all_gather: {
        const int count = count_of(call.in);
        const std::size_t mine = static_cast<std::size_t>(rank) * bytes_of(call.in);
        return must(MPI_Allgather(in(out + mine), count, type, out, count, type, comm_));
      }
      case Kind::reduce_scatter:  // in place MPI leaves its part at the front, and not in its place
        return must(MPI_Reduce_scatter_block(call.in.raw(), out, count_of(call.out), type, op, comm_));
      case Kind::broadcast: return must(MPI_Bcast(out, count_of(call.out), type, call.peer, comm_));
      case Kind::exchange: return exchange(call);
      case Kind::send:
      case Kind::receive:
      case Kind::barrier: break;
    }
    fail("mpi", "{}: not among the bare calls", to_string(call));
  }

 private:
  void exchange(const Call& call) {
    requests_.clear();
    for (const Incoming& message : call.incoming)
      must(MPI_Irecv(message.data.raw(), count_of(message.data), type_of(message.data.dtype()), message.peer,
                     0, comm_, &requests_.emplace_back()));
    for (const Outgoing& message : call.outgoing)
      must(MPI_Isend(message.data.raw(), count_of(message.data), type_of(message.data.dtype()), message.peer,
                     0, comm_, &requests_.emplace_back()));
    must(MPI_Waitall(static_cast<int>(requests_.size()), requests_.data(), MPI_STATUSES_IGNORE));
  }
  static int count_of(const ConstView& x) {
    check(x.numel() <= INT_MAX, "mpi", "a bare call: expected at most {} elements, got {}", INT_MAX,
          x.numel());
    return static_cast<int>(x.numel());
  }
  static void must(int code) { mpi_check(code, "a bare call"); }

  MPI_Comm comm_ = MPI_COMM_NULL;
  std::vector<MPI_Request> requests_;
};

}  // namespace

std::unique_ptr<BareCalls> bare_mpi(MPI_Comm of) { return std::make_unique<BareMpi>(of); }

}  // namespace transmamba
