#include "daemon/render.h"

#include <fmt/format.h>
#include <google/protobuf/util/json_util.h>
#include <google/protobuf/util/time_util.h>

#include <algorithm>

#include "daemon/table.h"
#include "daemon/units.h"
#include "pkg/base/status.h"

namespace bim::daemon {
namespace {

using google::protobuf::util::TimeUtil;

std::string Percent(uint32_t progress) { return fmt::format("{}%", progress); }

// Whole seconds: "2026-03-01T12:00:00Z".
std::string Time(google::protobuf::Timestamp time) {
  time.set_nanos(0);
  return TimeUtil::ToString(time);
}

std::string OptionalBytes(uint64_t bytes) {
  return bytes == 0 ? "" : HumanBytes(bytes);
}

std::string Verification(const v1::Copy& copy) {
  if (copy.verification() == "running") {
    return fmt::format("running {}%", copy.verification_progress());
  }
  if (copy.verification().empty()) {
    return copy.has_verified_at() ? Time(copy.verified_at()) : "";
  }
  return copy.has_verified_at() ? fmt::format("{} {}", copy.verification(),
                                              Time(copy.verified_at()))
                                : copy.verification();
}

std::string CopyMessage(const v1::Copy& copy) {
  std::string message = copy.message();
  const auto add = [&](const std::string& more) {
    message += (message.empty() ? "" : "; ") + more;
  };
  if (copy.sha512_pending()) add("SHA-512 is being computed anew");
  if (copy.has_next_attempt()) {
    add(fmt::format("attempt {} at {}", copy.attempts() + 1,
                    Time(copy.next_attempt())));
  }
  return message;
}

// "1.0 GiB", "0.3 GiB of 0.4 GiB zstd", "0.3 GiB zstd".
std::string Received(const v1::Copy& copy) {
  std::string text = OptionalBytes(copy.wire_bytes());
  if (copy.encoding().empty()) return text;
  if (copy.encoded_size() > 0) {
    text = fmt::format("{} of {}", HumanBytes(copy.wire_bytes()),
                       HumanBytes(copy.encoded_size()));
  }
  return text.empty() ? copy.encoding() : text + " " + copy.encoding();
}

}  // namespace

int ProgressPercent(const v1::Image& image) {
  if (image.state() == "ready") return 100;
  if (image.copies().empty()) return 0;
  uint64_t sum = 0;
  for (const v1::Copy& copy : image.copies()) {
    sum += copy.state() == "ready" ? 100 : std::min(copy.progress(), 100u);
  }
  return static_cast<int>(sum / static_cast<uint64_t>(image.copies_size()));
}

std::string RenderState(const v1::Image& image) {
  if (image.state() == "in-progress") {
    return fmt::format("in-progress {}%", ProgressPercent(image));
  }
  if (image.state() == "ready" || image.message().empty()) {
    return image.state();
  }
  return fmt::format("{}: {}", image.state(), image.message());
}

std::string RenderImages(const v1::ListResponse& images) {
  Table table({{"NAME"},
               {"UUID"},
               {"STATE"},
               {"PROGRESS", Table::Align::kRight},
               {"COPIES", Table::Align::kRight},
               {"FORMAT"},
               {"SIZE", Table::Align::kRight},
               {"VIRTUAL", Table::Align::kRight},
               {"MESSAGE"}});
  for (const v1::Image& image : images.images()) {
    const auto ready = std::count_if(
        image.copies().begin(), image.copies().end(),
        [](const v1::Copy& copy) { return copy.state() == "ready"; });
    table.AddRow({image.spec().name(), image.spec().uuid(), image.state(),
                  fmt::format("{}%", ProgressPercent(image)),
                  fmt::format("{}/{}", ready, image.copies_size()),
                  image.format(), OptionalBytes(image.size()),
                  OptionalBytes(image.virtual_size()),
                  image.state() == "ready" ? "" : image.message()});
  }
  return table.Render();
}

std::string RenderImage(const v1::Image& image) {
  std::string out;
  auto line = [&](std::string_view title, const std::string& value) {
    if (!value.empty()) {
      out += fmt::format("{:<14} {}\n", title, OneLine(value));
    }
  };
  const v1::ImageSpec& spec = image.spec();
  line("Name:", spec.name());
  line("UUID:", spec.uuid());
  line("State:", RenderState(image));
  line("Source:", spec.source().url());
  if (spec.source().upload()) line("Source:", "an upload");
  for (const std::string& peer : spec.source().peers()) line("Peer:", peer);
  line("Credential:", spec.source().credential());
  line("Format:", image.format());
  if (image.size() > 0) {
    line("Size:",
         fmt::format("{} ({} bytes)", HumanBytes(image.size()), image.size()));
  }
  if (image.virtual_size() > 0) {
    line("Virtual size:",
         fmt::format("{} ({} bytes)", HumanBytes(image.virtual_size()),
                     image.virtual_size()));
  }
  line("On disk:", OptionalBytes(image.real_size()));
  line("Wanted SHA-512:", spec.sha512());
  line("Wanted SHA-256:", spec.sha256());
  line("SHA-512:", image.current_sha512());
  line("SHA-256:", image.current_sha256());
  if (image.copies().empty()) return out;

  Table table({{"DISK"},
               {"STATE"},
               {"PROGRESS", Table::Align::kRight},
               {"ON DISK", Table::Align::kRight},
               {"ORIGIN"},
               {"RECEIVED", Table::Align::kRight},
               {"REUSED", Table::Align::kRight},
               {"PROVEN"},
               {"MESSAGE"}});
  for (const v1::Copy& copy : image.copies()) {
    table.AddRow({copy.disk_path(), copy.state(), Percent(copy.progress()),
                  OptionalBytes(copy.real_size()), copy.origin(),
                  Received(copy), OptionalBytes(copy.reused_bytes()),
                  Verification(copy), CopyMessage(copy)});
  }
  return out + "\n" + table.Render();
}

std::string RenderDisks(const v1::ListDisksResponse& disks) {
  Table table({{"UUID"},
               {"PATH"},
               {"STATE"},
               {"SIZE", Table::Align::kRight},
               {"AVAILABLE", Table::Align::kRight},
               {"IMAGES", Table::Align::kRight},
               {"EPOCH", Table::Align::kRight},
               {"MESSAGE"}});
  for (const v1::Disk& disk : disks.disks()) {
    const bool sized = disk.total_bytes() > 0;
    table.AddRow({disk.uuid(), disk.path(), disk.state(),
                  sized ? HumanBytes(disk.total_bytes()) : "",
                  sized ? HumanBytes(disk.available_bytes()) : "",
                  std::to_string(disk.images()), std::to_string(disk.epoch()),
                  disk.message()});
  }
  return table.Render();
}

std::string RenderAdopted(const v1::AdoptDiskResponse& adopted, bool dry_run) {
  Table table({{"DIRECTORY"}, {"NAME"}, {"UUID"}, {"RESULT"}, {"MESSAGE"}});
  for (const auto& image : adopted.images()) {
    table.AddRow({image.directory(), image.name(), image.uuid(),
                  dry_run && image.result() == "adopted" ? "would be adopted"
                                                         : image.result(),
                  image.message()});
  }
  return table.Render();
}

std::string RenderHandover(const v1::Handover& handover) {
  if (handover.role().empty()) return "no hand-over goes on\n";
  const auto party = [](const v1::HandoverParty& of) {
    return of.manager_id() + (of.version().empty() ? "" : " " + of.version()) +
           (of.endpoint().empty() ? "" : " at " + of.endpoint());
  };
  Table table({{"HAND-OVER"}, {handover.id()}});
  table.AddRow({"this manager is", handover.role()});
  table.AddRow({"phase", handover.phase()});
  table.AddRow({"owner", party(handover.owner())});
  table.AddRow({"candidate", party(handover.candidate())});
  table.AddRow({"ready", handover.ready() ? "yes" : "no"});
  table.AddRow({"confirmed by", handover.automatic() ? "itself" : "a person"});
  if (!handover.message().empty()) {
    table.AddRow({"message", handover.message()});
  }
  return table.Render();
}

std::string RenderHandoverHistory(const v1::HandoverHistoryResponse& history) {
  Table table({{"TIME"},
               {"DISK"},
               {"EVENT"},
               {"MANAGER"},
               {"VERSION"},
               {"EPOCH", Table::Align::kRight},
               {"MESSAGE"}});
  for (const v1::HandoverEvent& event : history.events()) {
    table.AddRow({FormatTime(event.time().seconds() * 1'000'000'000 +
                             event.time().nanos()),
                  event.disk(), event.event(), event.manager_id(),
                  event.version(), std::to_string(event.epoch()),
                  event.message()});
  }
  return table.Render();
}

std::string RenderLimits(const v1::Limits& limits) {
  const auto rate = [](uint64_t bytes) {
    return bytes == 0 ? "no limit" : HumanBytes(bytes) + "/s";
  };
  Table table({{"LIMIT"}, {"VALUE", Table::Align::kRight}});
  table.AddRow({"download-rate", rate(limits.download_rate())});
  table.AddRow({"peer-rate", rate(limits.peer_rate())});
  table.AddRow({"background-read-rate", rate(limits.background_read_rate())});
  table.AddRow({"transfers", std::to_string(limits.transfers())});
  table.AddRow(
      {"transfers-per-disk", std::to_string(limits.transfers_per_disk())});
  return table.Render();
}

std::string ToJson(const google::protobuf::Message& message, bool indented) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  options.always_print_primitive_fields = true;
  options.add_whitespace = indented;
  std::string json;
  // Fails only for messages with a bad Any or Timestamp inside.
  const auto status =
      google::protobuf::util::MessageToJsonString(message, &json, options);
  BIM_CHECK(status.ok());
  return json;
}

}  // namespace bim::daemon
