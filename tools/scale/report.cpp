#include "tools/scale/report.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/durable_rename.h"
#include "launch/child_process.h"

namespace transmamba {
namespace {

using Json = nlohmann::ordered_json;
constexpr auto kWhere = "scale";
constexpr int kVersion = 1;

void write_aside(const std::filesystem::path& file, const std::string& text) {
  const std::filesystem::path aside = file.string() + ".new";
  std::ofstream out(aside, std::ios::binary);
  out << text;
  out.close();
  check(!out.fail(), kWhere, "{}: cannot write: {}", aside.string(), std::strerror(errno));
  sync_to_disk(aside);
  durable_rename(aside, file);
}

Json json_of(const Prediction& p, double tokens) {
  return {{"seconds", p.step.total()},
          {"tokens_per_second", tokens / p.step.total()},
          {"compute", p.step.compute},
          {"tp", p.step.tp},
          {"cp", p.step.cp},
          {"pp", p.step.pp},
          {"dp", p.step.dp},
          {"optimizer", p.step.optimizer},
          {"memory_bytes_rank0", p.memory_rank0},
          {"memory_bytes_fullest", p.memory_most}};
}

Json json_of(const ParallelConfig& p) { return {{"tp", p.tp}, {"cp", p.cp}, {"dp", p.dp}, {"pp", p.pp}}; }

Json json_of(const Round& round) {
  return {
      {"seconds", round.seconds}, {"memory_bytes", round.memory_bytes}, {"exposed_seconds", round.exposed}};
}

Json json_of(const ScaleRun& run, const ScaleReport& report, const std::filesystem::path& folder) {
  Json json{{"name", run.name},
            {"size", run.size},
            {"ranks", run.ranks},
            {"mesh", json_of(run.config.parallel)},
            {"micro_batch", run.config.train.micro_batch},
            {"global_batch", run.config.train.global_batch},
            {"seq_len", run.config.train.seq_len},
            {"flops_per_step", run.flops}};
  json["state"] = !run.impossible.empty() ? "impossible"
                  : !run.failure.empty()  ? "failed"
                  : run.rounds.empty()    ? "pending"
                                          : "measured";
  if (!run.impossible.empty()) json["problem"] = run.impossible;
  if (!run.failure.empty()) json["problem"] = run.failure;
  if (run.predicted) json["predicted"] = json_of(*run.predicted, run.tokens());
  if (!run.impossible.empty()) return json;
  json["command"] = shell_words(run_command_of(run, report.launcher, folder));
  json["config"] = run.config.to_ini();
  json["rounds"] = Json::array();
  for (const Round& round : run.rounds) json["rounds"].push_back(json_of(round));
  if (const auto spread = run.measured(report.sweep.warmup))
    json["measured"] = {{"seconds_median", spread->median},
                        {"seconds_least", spread->least},
                        {"seconds_most", spread->most},
                        {"tokens_per_second", run.tokens() / spread->median},
                        {"memory_bytes", run.memory_bytes()},
                        {"exposed_seconds", run.exposed()},
                        {"predicted_over_measured", run.predicted->step.total() / spread->median}};
  return json;
}

Json json_of(const ScalePoint& point, const Sweep& sweep) {
  Json json{{"size", point.size},
            {"mode", point.mode},
            {"series", point.series},
            {"ranks", sweep.runs[point.run].ranks},
            {"run", sweep.runs[point.run].name}};
  if (const auto e = measured_efficiency(sweep, point)) json["efficiency"] = *e;
  if (const auto e = predicted_efficiency(sweep, point)) json["predicted_efficiency"] = *e;
  return json;
}

Json json_of(const CarriedOn& c) {
  Json json{{"size", c.size}, {"mode", c.mode}, {"ranks", c.ranks}};
  if (!c.impossible.empty()) {
    json["problem"] = c.impossible;
    return json;
  }
  json["mesh"] = json_of(c.mesh);
  json["global_batch"] = c.global_batch, json["seq_len"] = c.seq_len;
  json["predicted"] = json_of(c.predicted, static_cast<double>(c.global_batch * c.seq_len));
  json["efficiency"] = c.efficiency, json["mfu"] = c.mfu;
  return json;
}

Json json_of(const ScaleReport& report, const std::filesystem::path& folder) {
  Json json{{"version", kVersion},
            {"command", report.command},
            {"date", report.date},
            {"host", report.host},
            {"processor", report.processor},
            {"machine", {{"name", report.machine.name}, {"measured_on", report.machine.measured_on}}},
            {"data", report.data},
            {"warmup_steps", report.sweep.warmup}};
  json["runs"] = Json::array(), json["points"] = Json::array();
  for (const ScaleRun& run : report.sweep.runs) json["runs"].push_back(json_of(run, report, folder));
  for (const ScalePoint& point : report.sweep.points) json["points"].push_back(json_of(point, report.sweep));
  if (report.cluster) {
    json["cluster"] = {{"name", report.cluster->name}, {"sources", report.cluster->sources}};
    json["carried_on"] = Json::array();
    for (const CarriedOn& c : report.carried_on) json["carried_on"].push_back(json_of(c));
  }
  return json;
}

Round round_of(const Json& json) {
  return {json.at("seconds").get<std::vector<double>>(), json.at("memory_bytes").get<double>(),
          json.at("exposed_seconds").get<std::map<std::string, double>>()};
}

}  // namespace

std::filesystem::path run_folder(const std::filesystem::path& folder, const ScaleRun& run) {
  return folder / "runs" / run.name;
}

std::vector<std::string> run_command_of(const ScaleRun& run, const std::vector<std::string>& launcher,
                                        const std::filesystem::path& folder) {
  constexpr std::string_view kRanks = "{ranks}";
  std::vector<std::string> words = launcher;
  for (std::string& word : words)
    for (std::size_t at = word.find(kRanks); at != std::string::npos; at = word.find(kRanks))
      word.replace(at, kRanks.size(), std::to_string(run.ranks));
  words.insert(words.end(),
               {this_program().string(), "train", (run_folder(folder, run) / "run.cfg").string()});
  return words;
}

void save_report(const std::filesystem::path& folder, const ScaleReport& report) {
  write_aside(folder / "scale.json", json_of(report, folder).dump(1) + "\n");
  write_aside(folder / "scale.html", scale_page(report, folder));
}

void take_over_rounds(const std::filesystem::path& file, ScaleReport& report) {
  std::ifstream in(file, std::ios::binary);
  check(in.is_open(), kWhere, "{}: cannot read what --resume would go on with", file.string());
  try {
    const Json json = Json::parse(in);
    check(json.at("version") == kVersion, kWhere, "{}: version: expected {}, got {}", file.string(), kVersion,
          json.at("version").dump());
    for (const Json& old : json.at("runs"))
      for (ScaleRun& run : report.sweep.runs) {
        if (!run.impossible.empty() || old.value("config", "") != run.config.to_ini() ||
            old.value("command", "") != shell_words(run_command_of(run, report.launcher, file.parent_path())))
          continue;
        for (const Json& round : old.at("rounds")) run.rounds.push_back(round_of(round));
      }
  } catch (const Json::exception& error) {
    fail(kWhere, "{}: expected what an earlier `transmamba scale` wrote: {}", file.string(), error.what());
  }
}

}  // namespace transmamba
