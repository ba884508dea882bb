// What every Communicator does, said once: run over threads by communicator_test.cpp and over MPI by
// mpi/contract.cpp. A test throws Error where the contract is broken.
#pragma once

#include <span>

#include "parallel/comm/communicator.h"

namespace transmamba {

struct ContractTest {
  const char* name;
  void (*run)(Communicator& world);
};
/// All of them; each works with any number of ranks.
std::span<const ContractTest> contract_tests();

}  // namespace transmamba
