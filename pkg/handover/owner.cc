#include "pkg/handover/owner.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <condition_variable>
#include <deque>
#include <future>
#include <list>
#include <map>
#include <mutex>
#include <thread>

#include "pkg/base/log.h"
#include "pkg/base/names.h"

namespace bim::handover {
namespace {

using base::UniqueFd;
using nlohmann::json;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr size_t kMaxTalks = 8;
constexpr milliseconds kTick{100};
// How often the disks are looked at, for those that were added or lost.
constexpr milliseconds kLookAtDisks{500};
// What comes within this time is a beginning; a connection that says nothing
// is closed.
constexpr std::chrono::seconds kHelloTimeout{10};

class OwnerImpl final : public Owner {
 public:
  OwnerImpl(Options options, Host& host)
      : options_(std::move(options)),
        host_(host),
        wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    worker_ = std::thread([this] { Work(); });
    acceptor_ = std::thread([this] { AcceptAll(); });
  }
  ~OwnerImpl() override {
    Stop();
    acceptor_.join();
    worker_.join();
    if (releasing_.joinable()) releasing_.join();
    for (auto& line : lines_) line.reader.join();
  }

  void Stop() override {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
      for (auto& line : lines_) line.talk->Close();
    }
    changed_.notify_all();
    Wake();
  }

  base::Status Confirm() override { return Decide(OwnerEvent::kConfirm); }
  base::Status Rollback() override { return Decide(OwnerEvent::kRollback); }

  base::Status Would(bool confirm) override {
    std::lock_guard lock(mutex_);
    OwnerState state = state_;
    for (const OwnerEffect effect :
         Step(state, confirm ? OwnerEvent::kConfirm : OwnerEvent::kRollback)) {
      if (const auto answer = AnswerOf(effect)) return *answer;
    }
    return base::OkStatus();
  }

  Status Now() override {
    std::lock_guard lock(mutex_);
    Status status;
    status.phase = std::string(OwnerStageName(state_.stage));
    status.owner = options_.self;
    if (state_.stage == OwnerStage::kSteady) return status;
    status.id = record_.id;
    status.automatic = state_.automatic;
    status.candidate = candidate_;
    status.ready = state_.ready;
    status.connected = state_.connected;
    status.message = Message();
    return status;
  }

  bool Busy() override {
    std::lock_guard lock(mutex_);
    return state_.stage != OwnerStage::kSteady;
  }

 private:
  // A conversation.
  struct Line {
    uint64_t number = 0;
    std::unique_ptr<Talk> talk;
    std::thread reader;
    bool ended = false;
    std::optional<Party> party;
  };
  struct Queued {
    OwnerEvent event;
    uint64_t line = 0;  // whose; 0: nobody's
    std::shared_ptr<std::promise<base::Status>> answer;
  };

  void Wake() {
    const uint64_t one = 1;
    (void)!::write(wake_.get(), &one, sizeof(one));
  }

  // Locked.
  std::string Message() const {
    const std::string who = "manager " + candidate_.manager_id;
    switch (state_.stage) {
      case OwnerStage::kBegun:
        if (state_.down) {
          return who +
                 " is down: \"bim handover confirm\" gives the disks to "
                 "it all the same, and they wait for it; \"bim handover "
                 "rollback\" keeps them here";
        }
        if (state_.confirm) {
          return "waiting to confirm until the new manager is ready";
        }
        if (!state_.connected) return who + " does not talk to us";
        if (!state_.ready) return who + " loads what there is";
        return state_.automatic ? ""
                                : who +
                                      " is ready: \"bim handover "
                                      "confirm\" or \"bim handover "
                                      "rollback\"";
      case OwnerStage::kAsking:
        return "waiting for an answer of " + who;
      case OwnerStage::kReleasing:
        return "confirmed: running work ends";
      case OwnerStage::kReleased:
        return "confirmed: waiting until " + who + " serves";
      default:
        return "";
    }
  }

  base::Status Decide(OwnerEvent event) {
    auto answer = std::make_shared<std::promise<base::Status>>();
    auto future = answer->get_future();
    {
      std::lock_guard lock(mutex_);
      if (stopping_) return base::UnavailableError("the daemon is stopping");
      queue_.push_back({event, 0, std::move(answer)});
    }
    changed_.notify_all();
    return future.get();
  }

  void Post(OwnerEvent event, uint64_t line = 0) {
    {
      std::lock_guard lock(mutex_);
      queue_.push_back({event, line, nullptr});
    }
    changed_.notify_all();
  }

  // --- the worker: events in, effects out

  void Work() {
    std::unique_lock lock(mutex_);
    while (!stopping_) {
      changed_.wait_for(lock, kTick,
                        [&] { return stopping_ || !queue_.empty(); });
      if (stopping_) break;
      if (queue_.empty()) {
        Timers(lock);
        continue;
      }
      Queued next = std::move(queue_.front());
      queue_.pop_front();
      // Of a conversation that is not the hand-over's (any more).
      if (next.line != 0 && next.line != partner_) continue;
      // (Null: the candidate asks, and is told otherwise.)
      if (next.event == OwnerEvent::kConfirm) {
        confirms_.push_back(std::move(next.answer));
      } else if (next.event == OwnerEvent::kRollback) {
        rollbacks_.push_back(std::move(next.answer));
      }
      Do(lock, next.event);
    }
    for (auto* answers : {&confirms_, &rollbacks_}) {
      for (auto& answer : *answers) {
        if (answer)
          answer->set_value(base::UnavailableError("the daemon is stopping"));
      }
    }
    for (Queued& left : queue_) {
      if (left.answer) {
        left.answer->set_value(
            base::UnavailableError("the daemon is stopping"));
      }
    }
  }

  void Timers(std::unique_lock<std::mutex>& lock) {
    const auto now = steady_clock::now();
    if (deadline_ && now >= *deadline_) {
      deadline_.reset();
      Do(lock, OwnerEvent::kDeadline);
    }
    if (state_.stage == OwnerStage::kSteady || state_.down ||
        now < heard_ + options_.lease) {
      return;
    }
    BIM_LOG_WARN(
        "hand-over: manager {} was silent for {} s", candidate_.manager_id,
        std::chrono::duration_cast<std::chrono::seconds>(options_.lease)
            .count());
    EndLine(partner_);
    Do(lock, OwnerEvent::kLeaseEnded);
  }

  // Locked; unlocks while the host works.
  void Do(std::unique_lock<std::mutex>& lock, OwnerEvent event) {
    std::deque<OwnerEvent> events{event};
    while (!events.empty()) {
      const OwnerEffects effects = Step(state_, events.front());
      events.pop_front();
      if (!state_.confirm) deadline_.reset();
      for (const OwnerEffect effect : effects) {
        if (auto next = Perform(lock, effect)) events.push_back(*next);
      }
    }
  }

  std::optional<OwnerEvent> Perform(std::unique_lock<std::mutex>& lock,
                                    OwnerEffect effect) {
    switch (effect) {
      case OwnerEffect::kWriteBegun:
        record_ = {};
        record_.id = base::GenerateUuid();
        record_.automatic = state_.automatic;
        record_.owner = options_.self.manager_id;
        record_.owner_version = options_.self.version;
        record_.candidate = candidate_.manager_id;
        record_.candidate_version = candidate_.version;
        record_.candidate_endpoint = candidate_.endpoint;
        return Write(lock, HandoverPhase::kBegun, "begun");
      case OwnerEffect::kWriteConfirmed:
        return Write(lock, HandoverPhase::kConfirmed, "confirmed");
      case OwnerEffect::kWriteRolledBack:
        return Write(lock, HandoverPhase::kRolledBack, "rolled-back");
      case OwnerEffect::kTellBegun:
        Tell({{"bim", "begun"}, {"id", record_.id}});
        break;
      case OwnerEffect::kTellRefused:
        Tell({{"bim", "refused"},
              {"why", "no disk takes a record of the hand-over: " +
                          not_written_.message()}});
        break;
      case OwnerEffect::kAsk:
        Tell({{"bim", "asked"}});
        break;
      case OwnerEffect::kTellWithdrawn:
        Tell({{"bim", "withdrawn"}});
        break;
      case OwnerEffect::kTellReleased:
        Tell({{"bim", "released"}});
        break;
      case OwnerEffect::kTellRolledBack:
        Tell({{"bim", "rolled-back"}}, undone_);
        break;
      case OwnerEffect::kDrain: {
        const std::string why =
            "this manager hands over to manager " + candidate_.manager_id +
            (candidate_.endpoint.empty() ? "" : " at " + candidate_.endpoint) +
            ": ask it, or try again";
        lock.unlock();
        host_.Hold(why);
        lock.lock();
        break;
      }
      case OwnerEffect::kResume:
        undone_ = partner_;
        lock.unlock();
        host_.Resume();
        lock.lock();
        return OwnerEvent::kResumed;
      case OwnerEffect::kEndTalk:
        // An open connection would keep the file system of its socket in use.
        // (Its manager may have begun anew meanwhile, by another one.)
        EndLine(undone_);
        if (partner_ == undone_) partner_ = 0;
        break;
      case OwnerEffect::kRelease:
        // It takes its time; the conversation goes on.
        releasing_ = std::thread([this] {
          host_.Release();
          Post(OwnerEvent::kReleased);
        });
        break;
      case OwnerEffect::kStartDeadline:
        deadline_ = steady_clock::now() + options_.confirm_timeout;
        break;
      case OwnerEffect::kStartLease:
        break;  // Timers() looks at what was heard last
      case OwnerEffect::kExit:
        lock.unlock();
        host_.Exit(true);
        lock.lock();
        break;
      case OwnerEffect::kAnswerOk:
      case OwnerEffect::kAnswerNothing:
      case OwnerEffect::kAnswerDecided:
      case OwnerEffect::kAnswerTimeout:
      case OwnerEffect::kAnswerNotWritten:
        Answer(*AnswerOf(effect));
        break;
    }
    return std::nullopt;
  }

  // What who waits for a decision is told. nullopt: it is another effect.
  std::optional<base::Status> AnswerOf(OwnerEffect effect) const {
    switch (effect) {
      case OwnerEffect::kAnswerOk:
        return base::OkStatus();
      case OwnerEffect::kAnswerNothing:
        return NothingToDecideError();
      case OwnerEffect::kAnswerDecided:
        return base::FailedPreconditionError(
            "the hand-over to manager " + candidate_.manager_id +
            " was confirmed: it cannot be rolled back any more");
      case OwnerEffect::kAnswerTimeout:
        return base::DeadlineExceededError(
            "manager " + candidate_.manager_id +
            " did not get ready, or does not answer; nothing was confirmed and "
            "this manager goes on serving: try again, or roll back");
      case OwnerEffect::kAnswerNotWritten:
        return base::UnavailableError("no disk takes the decision: " +
                                      not_written_.message());
      default:
        return std::nullopt;
    }
  }

  std::optional<OwnerEvent> Write(std::unique_lock<std::mutex>& lock,
                                  HandoverPhase phase, std::string_view what) {
    store::HandoverRecord record = record_;
    record.phase = phase;
    const std::string message = "to manager " + record.candidate + " (" +
                                record.candidate_version + ")";
    lock.unlock();
    const base::Status written = host_.Write(record);
    if (written.ok()) {
      BIM_LOG_INFO("hand-over {} {}: {}", record.id, message, what);
    } else {
      BIM_LOG_ERROR("hand-over {} {}: \"{}\" cannot be recorded: {}", record.id,
                    message, what, written.message());
    }
    lock.lock();
    not_written_ = written;
    if (written.ok()) record_ = record;
    return written.ok() ? OwnerEvent::kWritten : OwnerEvent::kNotWritten;
  }

  // When somebody waits for either, who confirms is answered first.
  void Answer(const base::Status& status) {
    auto& waiting = confirms_.empty() ? rollbacks_ : confirms_;
    const auto answered = std::move(waiting);
    waiting.clear();
    for (const auto& each : answered) {
      if (each) each->set_value(status);
    }
  }

  // --- conversations

  void Tell(const json& document) { Tell(document, partner_); }
  void Tell(const json& document, uint64_t number) {
    for (Line& line : lines_) {
      if (line.number != number || line.ended) continue;
      if (!line.talk->Send(document).ok()) line.talk->Close();
    }
  }

  // Locked.
  void EndLine(uint64_t number) {
    for (Line& line : lines_) {
      if (line.number == number) line.talk->Close();
    }
  }

  void AcceptAll() {
    std::map<std::string, UniqueFd> listeners;  // by disk
    std::map<std::string, std::string> refused;
    auto looked = steady_clock::time_point();
    for (;;) {
      if (steady_clock::now() >= looked + kLookAtDisks) {
        looked = steady_clock::now();
        Listen(listeners, refused);
      }
      std::vector<pollfd> waiting{{wake_.get(), POLLIN, 0}};
      for (const auto& [disk, fd] : listeners) {
        waiting.push_back({fd.get(), POLLIN, 0});
      }
      ::poll(waiting.data(), waiting.size(),
             static_cast<int>(kLookAtDisks.count()));
      uint64_t count = 0;
      (void)!::read(wake_.get(), &count, sizeof(count));
      {
        std::lock_guard lock(mutex_);
        if (stopping_) return;
      }
      for (size_t i = 1; i < waiting.size(); ++i) {
        if ((waiting[i].revents & POLLIN) != 0) Take(waiting[i].fd);
      }
      Reap();
    }
  }

  void Listen(std::map<std::string, UniqueFd>& listeners,
              std::map<std::string, std::string>& refused) {
    std::map<std::string, UniqueFd> kept;
    for (const OwnedDisk& disk : host_.Disks()) {
      if (const auto it = listeners.find(disk.uuid); it != listeners.end()) {
        kept.insert(listeners.extract(it));
        continue;
      }
      const auto root = io::Dir::Open(disk.path);
      auto made =
          root.ok() ? ListenOn(*root) : base::Result<UniqueFd>(root.status());
      if (made.ok()) {
        kept.emplace(disk.uuid, *std::move(made));
        refused.erase(disk.uuid);
      } else if (refused[disk.uuid] != made.status().message()) {
        // A successor has to wait for the end of this process then.
        BIM_LOG_WARN("disk {}: no hand-over by its socket: {}", disk.uuid,
                     made.status().message());
        refused[disk.uuid] = made.status().message();
      }
    }
    listeners = std::move(kept);
  }

  void Take(int listener) {
    std::unique_ptr<Talk> talk = Accept(listener);
    if (!talk) return;
    std::lock_guard lock(mutex_);
    if (stopping_ || lines_.size() >= kMaxTalks) return;
    Line& line = lines_.emplace_back();
    line.number = ++last_line_;
    line.talk = std::move(talk);
    line.reader = std::thread([this, &line] { Read(line); });
  }

  void Reap() {
    std::list<Line> ended;
    {
      std::lock_guard lock(mutex_);
      for (auto it = lines_.begin(); it != lines_.end();) {
        const auto next = std::next(it);
        if (it->ended) ended.splice(ended.end(), lines_, it);
        it = next;
      }
    }
    for (Line& line : ended) line.reader.join();
  }

  void Read(Line& line) {
    const auto begin = steady_clock::now();
    for (;;) {
      auto packet = line.talk->Receive(milliseconds(500));
      if (!packet.ok()) {
        if (packet.status().code() == base::Code::kInvalidArgument) {
          (void)line.talk->Send(
              {{"bim", "refused"}, {"why", packet.status().message()}});
        }
        break;
      }
      if (!*packet) {
        if (line.party || steady_clock::now() < begin + kHelloTimeout) continue;
        break;
      }
      if (!Handle(line, (**packet).document)) break;
    }
    line.talk->Close();
    {
      std::lock_guard lock(mutex_);
      line.ended = true;
    }
    Post(OwnerEvent::kDisconnected, line.number);
    Wake();
  }

  // False: the conversation ends.
  bool Handle(Line& line, const json& document) {
    const std::string what = TextOf(document, "bim");
    {
      std::lock_guard lock(mutex_);
      if (line.number == partner_) heard_ = steady_clock::now();
    }
    const auto refuse = [&](const std::string& why) {
      return line.talk->Send({{"bim", "refused"}, {"why", why}}).ok();
    };
    if (!line.party) {
      auto party = FromHello(document);
      if (!party.ok()) {
        (void)refuse(party.status().message());
        return false;
      }
      json hello = ToHello(options_.self);
      hello["pid"] = ::getpid();
      hello["disks"] = json::array();
      for (const OwnedDisk& disk : host_.Disks()) {
        hello["disks"].push_back({{"uuid", disk.uuid}, {"path", disk.path}});
      }
      std::lock_guard lock(mutex_);
      line.party = *std::move(party);
      return line.talk->Send(hello).ok();
    }
    if (what == "alive") return line.talk->Send({{"bim", "alive"}}).ok();
    if (what == "stop") {
      // Never changes either: the way out when nothing else is understood.
      BIM_LOG_WARN("manager {} ({}) asks this one to stop",
                   line.party->manager_id, line.party->version);
      (void)line.talk->Send({{"bim", "stopping"}});
      host_.Exit(false);
      return true;
    }
    if (what == "sockets") {
      json addresses = json::array();
      std::vector<int> descriptors;
      std::vector<ListeningSocket> sockets;
      if (line.party->net_namespace == options_.self.net_namespace) {
        sockets = host_.Sockets();
      }
      for (const ListeningSocket& socket : sockets) {
        addresses.push_back(socket.address);
        descriptors.push_back(socket.fd.get());
      }
      return line.talk
          ->Send({{"bim", "sockets"}, {"addresses", addresses}}, descriptors)
          .ok();
    }
    if (what == "begin") return Begin(line, document, refuse);
    static const std::map<std::string, OwnerEvent> kEvents{
        {"ready", OwnerEvent::kReady},
        {"accepted", OwnerEvent::kAccepted},
        {"owned", OwnerEvent::kOwned}};
    if (const auto it = kEvents.find(what); it != kEvents.end()) {
      Post(it->second, line.number);
      return true;
    }
    if (what == "confirm" || what == "rollback") {
      Forward(line, what);
      return true;
    }
    return refuse("cannot do '" + base::Printable(what) + "'");
  }

  bool Begin(Line& line, const json& document,
             const std::function<bool(const std::string&)>& refuse) {
    const auto it = document.find("automatic");
    const bool automatic =
        it != document.end() && it->is_boolean() && it->get<bool>();
    if (base::Status fits = CheckCompatible(options_.self, *line.party);
        !fits.ok()) {
      return refuse(fits.message());
    }
    if (base::Status two = CheckDistinct(options_.self, *line.party, automatic);
        !two.ok()) {
      return refuse(two.message());
    }
    {
      std::lock_guard lock(mutex_);
      if (state_.stage != OwnerStage::kSteady &&
          line.party->manager_id != candidate_.manager_id) {
        return refuse(
            OneAtATimeError(candidate_.manager_id, record_.id).message());
      }
      if (partner_ != 0 && partner_ != line.number) EndLine(partner_);
      partner_ = line.number;
      candidate_ = *line.party;
      heard_ = steady_clock::now();
      queue_.push_back(
          {automatic ? OwnerEvent::kBeginAutomatic : OwnerEvent::kBegin,
           line.number, nullptr});
    }
    changed_.notify_all();
    return true;
  }

  // A decision that was told to the candidate: its caller gets the answer.
  void Forward(Line& line, const std::string& what) {
    {
      std::lock_guard lock(mutex_);
      if (line.number != partner_) return;
      queue_.push_back(
          {what == "confirm" ? OwnerEvent::kConfirm : OwnerEvent::kRollback,
           line.number, nullptr});
    }
    changed_.notify_all();
  }

  const Options options_;
  Host& host_;
  UniqueFd wake_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool stopping_ = false;
  OwnerState state_;
  store::HandoverRecord record_;
  Party candidate_;
  base::Status not_written_;
  uint64_t partner_ = 0;  // the conversation of the hand-over
  uint64_t undone_ = 0;   // of the last one that was rolled back
  uint64_t last_line_ = 0;
  steady_clock::time_point heard_;
  std::optional<steady_clock::time_point> deadline_;
  std::deque<Queued> queue_;
  std::vector<std::shared_ptr<std::promise<base::Status>>> confirms_;
  std::vector<std::shared_ptr<std::promise<base::Status>>> rollbacks_;
  std::list<Line> lines_;
  std::thread releasing_;
  std::thread worker_;
  std::thread acceptor_;
};

}  // namespace

base::Status OneAtATimeError(const std::string& candidate,
                             const std::string& id) {
  return base::FailedPreconditionError(
      "cannot hand over to more than one manager: a hand-over to manager " +
      candidate + " is in progress (" + id + ")");
}

base::Status NothingToDecideError() {
  return base::FailedPreconditionError("there is no hand-over to decide about");
}

std::unique_ptr<Owner> Owner::Start(Options options, Host& host) {
  return std::make_unique<OwnerImpl>(std::move(options), host);
}

}  // namespace bim::handover
