#include "daemon/follow.h"

#include <fmt/format.h>
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <map>
#include <utility>

#include "daemon/progress_line.h"
#include "daemon/render.h"

namespace bim::daemon {
namespace {

// How long the daemon may be away while a command follows it.
constexpr std::chrono::seconds kAway{30};
// The interrupt has it.
constexpr std::chrono::milliseconds kNoDeadline{0};

CommandEnd EndOf(const Interrupt& interrupt, std::string_view what_goes_on) {
  if (interrupt.timed_out()) {
    return {ExitCode::kTimedOut, fmt::format("timed out; {}", what_goes_on)};
  }
  return {ExitCode::kInterrupted, fmt::format("interrupted; {}", what_goes_on)};
}

// Reads Watch until `on_event` returns false or the interrupt; connects again
// when the daemon was away, and goes on where it was.
CommandEnd Follow(
    Connection& connection, const Interrupt& interrupt,
    const std::function<bool(const v1::WatchResponse&)>& on_event) {
  std::string resume_token;
  bool was_connected = false;
  auto away_since = std::chrono::steady_clock::now();
  for (;;) {
    grpc::ClientContext context;
    api::Client::PrepareContext(context, kNoDeadline);
    const std::stop_callback cancel(interrupt.token(),
                                    [&] { context.TryCancel(); });
    v1::WatchRequest request;
    request.set_resume_token(resume_token);
    auto reader = connection.images().Watch(&context, request);
    v1::WatchResponse response;
    bool more = true;
    while (more && reader->Read(&response)) {
      was_connected = true;
      away_since = std::chrono::steady_clock::now();
      resume_token = response.resume_token();
      more = on_event(response);
    }
    if (!more) context.TryCancel();
    const grpc::Status status = reader->Finish();
    if (!more) return {};
    if (interrupt.requested()) return EndOf(interrupt, "the daemon goes on");
    // CANCELLED: by the daemon, that goes away.
    const bool away = status.ok() ||
                      status.error_code() == grpc::StatusCode::UNAVAILABLE ||
                      status.error_code() == grpc::StatusCode::CANCELLED;
    if (!was_connected || !away ||
        std::chrono::steady_clock::now() - away_since > kAway) {
      CommandEnd end = connection.Explain(status);
      if (!end.ok()) return end;
      return {ExitCode::kFailed, "the daemon ended the stream of changes"};
    }
    connection.Reconnect(kAway);
  }
}

// Of all wanted copies together. The size of the file is not always known
// before it is there; the share of it is.
Progress ProgressOf(const v1::Image& image) {
  Progress progress{
      .label = fmt::format("{}  {}", image.spec().name(), image.state()),
      .percent = ProgressPercent(image)};
  for (const v1::Copy& copy : image.copies()) {
    progress.done_bytes += copy.processed_bytes();
  }
  return progress;
}

bool IsBeingWorkedOn(const v1::Image& image) {
  return std::any_of(
      image.copies().begin(), image.copies().end(), [](const v1::Copy& copy) {
        return copy.state() == "starting" || copy.state() == "in-progress";
      });
}

bool HasFailedCopy(const v1::Image& image) {
  return image.state() == "failed" ||
         std::any_of(
             image.copies().begin(), image.copies().end(),
             [](const v1::Copy& copy) { return copy.state() == "failed"; });
}

std::string FailureOf(const v1::Image& image) {
  for (const v1::Copy& copy : image.copies()) {
    if (copy.state() == "failed") {
      return fmt::format("image {} failed on disk {}: {}", image.spec().name(),
                         copy.disk_path(), copy.message());
    }
  }
  return fmt::format("image {} failed: {}", image.spec().name(),
                     image.message());
}

std::string ClockTime() {
  const time_t now = time(nullptr);
  tm local{};
  localtime_r(&now, &local);
  return fmt::format("{:02}:{:02}:{:02}", local.tm_hour, local.tm_min,
                     local.tm_sec);
}

}  // namespace

CommandEnd AwaitImage(Connection& connection, const Interrupt& interrupt,
                      v1::Image& image) {
  ProgressLine line;
  CommandEnd result;
  bool seen = false;  // in the current snapshot
  auto on_event = [&](const v1::WatchResponse& event) {
    if (event.type() == v1::WatchResponse::TYPE_SNAPSHOT_BEGIN) seen = false;
    const bool ours = event.image().spec().name() == image.spec().name() &&
                      event.image().spec().uuid() == image.spec().uuid();
    if ((event.type() == v1::WatchResponse::TYPE_SNAPSHOT_END && !seen) ||
        (event.type() == v1::WatchResponse::TYPE_REMOVED && ours)) {
      result = {
          ExitCode::kNotFound,
          fmt::format("image {} was removed meanwhile", image.spec().name())};
      return false;
    }
    if (event.type() != v1::WatchResponse::TYPE_IMAGE || !ours) return true;
    seen = true;
    image = event.image();
    if (image.state() == "ready") return false;
    if (HasFailedCopy(image) && !IsBeingWorkedOn(image)) {
      result = {ExitCode::kImageFailed, FailureOf(image)};
      return false;
    }
    line.Update(ProgressOf(image));
    return true;
  };
  const CommandEnd end = Follow(connection, interrupt, on_event);
  line.Clear();
  return end.ok() ? result : end;
}

CommandEnd WatchImages(Connection& connection, const Interrupt& interrupt,
                       const ImageWatchCommand& command, OutputFormat output) {
  ProgressLine line;
  // What was printed last of each image: a change of progress alone is a new
  // line only where no bar shows it.
  std::map<std::pair<std::string, std::string>, std::string> printed;
  auto print = [&](const v1::ImageSpec& spec, const std::string& text) {
    line.Clear();
    std::printf("%s  %s  %s  %s\n", ClockTime().c_str(), spec.name().c_str(),
                spec.uuid().c_str(), OneLine(text).c_str());
  };
  auto on_event = [&](const v1::WatchResponse& event) {
    const v1::ImageSpec& spec = event.image().spec();
    const bool about_an_image = event.type() == v1::WatchResponse::TYPE_IMAGE ||
                                event.type() == v1::WatchResponse::TYPE_REMOVED;
    if (about_an_image && !command.name.empty() &&
        spec.name() != command.name) {
      return true;
    }
    if (output == OutputFormat::kJson) {
      std::puts(ToJson(event, /*indented=*/false).c_str());
    } else if (event.type() == v1::WatchResponse::TYPE_REMOVED) {
      printed.erase({spec.name(), spec.uuid()});
      print(spec, "removed");
    } else if (event.type() == v1::WatchResponse::TYPE_IMAGE) {
      const v1::Image& image = event.image();
      const bool moving = image.state() == "in-progress";
      std::string text = RenderState(image);
      if (moving && line.visible()) text = image.state();
      std::string& last = printed[{spec.name(), spec.uuid()}];
      if (text != last) print(spec, text);
      last = text;
      if (moving) {
        line.Update(ProgressOf(image));
      } else {
        line.Clear();
      }
    }
    std::fflush(stdout);
    return std::ferror(stdout) == 0;
  };
  CommandEnd end = Follow(connection, interrupt, on_event);
  line.Clear();
  // To be interrupted is how watching ends.
  if (end.exit_code == ExitCode::kInterrupted) end.message.clear();
  return end;
}

CommandEnd WatchHandover(Connection& connection, const Interrupt& interrupt,
                         v1::HandoverService::Stub& stub, OutputFormat output) {
  grpc::ClientContext context;
  api::Client::PrepareContext(context, kNoDeadline);
  const std::stop_callback cancel(interrupt.token(),
                                  [&] { context.TryCancel(); });
  const auto reader = stub.Watch(&context, v1::WatchHandoverRequest());
  v1::WatchHandoverResponse response;
  while (reader->Read(&response)) {
    if (output == OutputFormat::kJson) {
      std::puts(ToJson(response, /*indented=*/false).c_str());
    } else {
      const v1::Handover& now = response.handover();
      std::printf(
          "%s  %s%s%s\n", ClockTime().c_str(),
          now.role().empty() ? "no hand-over goes on"
                             : OneLine(now.role() + ": ").c_str(),
          now.role().empty() ? "" : OneLine(now.phase()).c_str(),
          now.message().empty() ? "" : (", " + OneLine(now.message())).c_str());
    }
    std::fflush(stdout);
    if (std::ferror(stdout) != 0) context.TryCancel();
  }
  const grpc::Status status = reader->Finish();
  if (interrupt.requested()) {
    CommandEnd end = EndOf(interrupt, "");
    if (end.exit_code == ExitCode::kInterrupted) end.message.clear();
    return end;
  }
  return connection.Explain(status);
}

CommandEnd VerifyImage(Connection& connection, const Interrupt& interrupt,
                       const ImageVerifyCommand& command, OutputFormat output) {
  ProgressLine line;
  grpc::ClientContext context;
  api::Client::PrepareContext(context, kNoDeadline);
  const std::stop_callback cancel(interrupt.token(),
                                  [&] { context.TryCancel(); });
  v1::VerifyRequest request;
  request.set_name(command.name);
  request.set_uuid(command.uuid);
  for (const std::string& disk : command.disks) request.add_disks(disk);
  request.set_repair(command.repair);
  auto reader = connection.images().Verify(&context, request);
  v1::VerifyResponse response;
  bool done = false;
  while (!done && reader->Read(&response)) {
    done = response.done();
    line.Update({.label = command.name,
                 .done_bytes = response.verified_bytes(),
                 .total_bytes = response.total_bytes()});
  }
  if (done) context.TryCancel();
  const grpc::Status status = reader->Finish();
  line.Clear();
  if (!done) {
    if (interrupt.requested()) {
      return EndOf(interrupt, "the daemon goes on with the verification");
    }
    CommandEnd end = connection.Explain(status);
    if (!end.ok()) return end;
    return {ExitCode::kFailed, "the daemon ended the verification early"};
  }
  if (output == OutputFormat::kJson) {
    std::puts(ToJson(response, /*indented=*/true).c_str());
  } else if (response.ok()) {
    const std::string repaired =
        response.repaired_chunks() == 0 ? ""
        : response.repaired_chunks() == 1
            ? "1 damaged part was repaired, "
            : fmt::format("{} damaged parts were repaired, ",
                          response.repaired_chunks());
    std::printf("%s: verified, %s%s\n", command.name.c_str(), repaired.c_str(),
                response.message().empty()
                    ? "every copy is as its digest says"
                    : OneLine(response.message()).c_str());
  }
  if (response.ok()) return {};
  return {ExitCode::kImageFailed,
          fmt::format("image {}: {}", command.name,
                      response.message().empty()
                          ? "a copy is not as its digest says"
                          : OneLine(response.message()))};
}

}  // namespace bim::daemon
