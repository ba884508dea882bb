// transmamba train: from a configuration to a trained model.
#include <fmt/core.h>

#include <csignal>

#include "launch/agreement.h"
#include "launch/trainer.h"
#include "parallel/comm/roll_call.h"
#include "tools/commands.h"

namespace transmamba {

int train(Process& process, std::vector<std::string> arguments) {
  if (arguments.empty() || is_help(arguments[0]) || arguments[0].starts_with("--"))
    return print_usage(process,
                       "usage: transmamba train CONFIG [--profile STEPS] [--section.key value ...]\n\n"
                       "CONFIG is an INI file; keys:\n" +
                           describe_config(),
                       arguments);
  for (std::string& word : arguments)  // the one key that has a short form
    if (word == "--profile" || word.starts_with("--profile=")) word.insert(2, "log.");
  const Config config = parse_config(arguments[0], {arguments.begin() + 1, arguments.end()});
  StopSignals signals;  // from here on: one that comes while a run starts is not lost
  Session session(config.train, process);
  // Where a rank is gone launchers send the others SIGTERM. What these say is no error of theirs, and so is
  // not marked as one.
  LastWords last_words(
      process.name(), [&] { return signals.number() == SIGTERM; },
      [](const std::string& text) { fmt::print(stderr, "{}\n", text); });
  const auto world = session.world(process, static_cast<double>(config.parallel.timeout));
  world->recorder().set_last_words(&last_words);
  for (const std::string& warning : check_same_program(*world))
    if (process.rank() == 0) fmt::print(stderr, "warning: {}\n", warning);
  Trainer trainer(config, session, *world, &signals);
  const ExitCode code = trainer.run();
  if (code == kExitStopped)
    signals.ignore();  // a launcher may end the last ranks as soon as the first is gone
  return code;
}

}  // namespace transmamba
