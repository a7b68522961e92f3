#include "pkg/store/history.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/wait.h>

#include <set>
#include <thread>

#include "tests/unit/store/scratch.h"

namespace bim::store {
namespace {

using base::Code;
using std::chrono::system_clock;
using test::ReadAll;
using test::WriteAll;
using ::testing::HasSubstr;
using ::testing::SizeIs;

HistoryEntry Entry(int64_t time_ns, const std::string& name = "debian") {
  HistoryEntry entry;
  entry.time_ns = time_ns;
  entry.what = HistoryEvent::kReady;
  entry.name = name;
  entry.uuid = "u-1";
  entry.message = "download";
  entry.manager_id = "m";
  entry.version = "1";
  entry.epoch = 7;
  return entry;
}
system_clock::time_point At(int64_t time_ns) {
  return system_clock::time_point(
      std::chrono::duration_cast<system_clock::duration>(
          std::chrono::nanoseconds(time_ns)));
}

class HistoryTest : public ::testing::Test {
 protected:
  const io::Dir& Root() { return scratch_.disk->root(); }
  std::string File() { return scratch_.Path(kHistoryFile); }
  std::string Text() { return ReadAll(File()); }
  History Read() {
    auto history = ReadHistory(Root());
    EXPECT_TRUE(history.ok()) << history.status().ToString();
    return history.ok() ? *std::move(history) : History();
  }
  base::Status Append(const HistoryEntry& entry) {
    return AppendHistory(*scratch_.disk, entry);
  }
  test::ScratchDisk scratch_;
};

TEST(HistoryEntry, IsReadAsItWasWritten) {
  std::set<std::string_view> names;
  for (int i = 0; i <= static_cast<int>(HistoryEvent::kInterrupted); ++i) {
    HistoryEntry entry = Entry(5);
    entry.what = static_cast<HistoryEvent>(i);
    entry.message = "a \"quoted\"\nline, \xC3\xA4";
    names.insert(HistoryEventName(entry.what));
    const std::string line = EncodeHistory(entry);
    EXPECT_EQ(std::count(line.begin(), line.end(), '\n'), 1);
    const auto read = DecodeHistory(line);
    ASSERT_TRUE(read.ok()) << read.status().ToString();
    EXPECT_EQ(*read, entry);
  }
  EXPECT_THAT(names, SizeIs(10));
}

TEST(HistoryEntry, IsCut) {
  HistoryEntry entry = Entry(5);
  entry.message = std::string(299, 'a') + "\xC3\xA4" + "bcd";
  EXPECT_EQ(DecodeHistory(EncodeHistory(entry))->message,
            std::string(299, 'a') + "\xC3\xA4")
      << "at 300 characters, not bytes";
  for (const std::string& odd :
       {std::string(100'000, 'x'), std::string(100'000, '\x01'),
        std::string(100'000, '\x80'), std::string(100'000, '\xFF')}) {
    HistoryEntry long_one = Entry(5);
    long_one.name = long_one.uuid = long_one.message = odd;
    long_one.manager_id = long_one.version = odd;
    const std::string line = EncodeHistory(long_one);
    EXPECT_LE(line.size(), kMaxHistoryLine);
    const auto read = DecodeHistory(line);
    EXPECT_TRUE(read.ok()) << read.status().ToString();
  }
}

TEST(HistoryEntry, IsNotGuessed) {
  const std::string good = EncodeHistory(Entry(5));
  for (size_t cut = 0; cut + 2 < good.size(); ++cut) {
    EXPECT_EQ(DecodeHistory(good.substr(0, cut)).status().code(),
              Code::kDataLoss)
        << cut;
  }
  std::string other = good;
  other.replace(other.find("ready"), 5, "bogus");
  EXPECT_THAT(DecodeHistory(other).status().message(), HasSubstr("bogus"));
}

TEST_F(HistoryTest, IsEmptyWhenThereIsNone) {
  const History history = Read();
  EXPECT_THAT(history.entries, SizeIs(0));
  EXPECT_EQ(history.skipped, 0u);
  const auto pruned = PruneHistory(Root(), system_clock::now(), false);
  BIM_ASSERT_OK(pruned.status());
  EXPECT_EQ(pruned->dropped + pruned->kept, 0u);
  EXPECT_FALSE(test::Exists(File())) << "nothing is made of nothing";
}

TEST_F(HistoryTest, SaysWhoAndWhen) {
  HistoryEntry entry;
  entry.what = HistoryEvent::kFailed;
  entry.name = "debian";
  entry.uuid = "u-1";
  entry.message = "why";
  const auto before = system_clock::now();
  BIM_ASSERT_OK(Append(entry));
  BIM_ASSERT_OK(Append(Entry(1)));
  const History history = Read();
  ASSERT_THAT(history.entries, SizeIs(2));
  const HistoryEntry& first = history.entries[0];
  EXPECT_EQ(first.what, HistoryEvent::kFailed);
  EXPECT_EQ(first.name, "debian");
  EXPECT_EQ(first.uuid, "u-1");
  EXPECT_EQ(first.message, "why");
  EXPECT_EQ(first.manager_id, "manager-1");
  EXPECT_EQ(first.version, "0.0");
  EXPECT_EQ(first.epoch, 1u);
  EXPECT_GE(first.time_ns, before.time_since_epoch().count());
  EXPECT_EQ(history.entries[1].time_ns, 1);
  EXPECT_EQ(history.entries[1].manager_id, "manager-1");
}

TEST_F(HistoryTest, OnlyTheOwnerWritesToIt) {
  const ImageKey key{"a", "u", Place::kDataSource};
  const auto source = Disk::OpenForDataSource(scratch_.dir.path(), "", key);
  BIM_ASSERT_OK(
      AppendHistory(*std::get<std::shared_ptr<Disk>>(source), Entry(1)));
  scratch_.disk->Release();
  BIM_ASSERT_OK(Append(Entry(2)));
  EXPECT_FALSE(test::Exists(File()));
  // Whoever holds the lock of one that nobody owns.
  BIM_ASSERT_OK(AppendHistory(Root(), Entry(3)));
  ASSERT_THAT(Read().entries, SizeIs(1));
  EXPECT_EQ(Read().entries[0], Entry(3)) << "as it was given";
}

TEST_F(HistoryTest, DamagedLinesAreSkippedAndCounted) {
  const std::string good = EncodeHistory(Entry(1));
  WriteAll(File(), "garbage\n" + good + good.substr(0, 40) + "\n" +
                       std::string(100, '\0') + "\n\n[]\n" + good +
                       good.substr(0, good.size() / 2));
  EXPECT_THAT(Read().entries, SizeIs(2));
  EXPECT_EQ(Read().skipped, 5u);
  // One that is torn does not take the next one with it.
  BIM_ASSERT_OK(Append(Entry(9)));
  BIM_ASSERT_OK(Append(Entry(10)));
  ASSERT_THAT(Read().entries, SizeIs(4));
  EXPECT_EQ(Read().entries[2].time_ns, 9);
  EXPECT_EQ(Read().skipped, 5u);
  EXPECT_THAT(Text(), HasSubstr("\n" + EncodeHistory(Read().entries[3])));
}

TEST_F(HistoryTest, ThePastGoesByHalves) {
  for (size_t i = 1; i <= kMaxHistoryEntries; ++i) {
    BIM_ASSERT_OK(Append(Entry(static_cast<int64_t>(i))));
  }
  EXPECT_THAT(Read().entries, SizeIs(kMaxHistoryEntries));
  // A process that knows nothing of the file counts them.
  scratch_.Restart();
  BIM_ASSERT_OK(Append(Entry(kMaxHistoryEntries + 1)));
  History history = Read();
  ASSERT_THAT(history.entries, SizeIs(kMaxHistoryEntries / 2 + 1));
  EXPECT_EQ(history.entries.front().time_ns, kMaxHistoryEntries / 2 + 1);
  EXPECT_EQ(history.entries.back().time_ns, kMaxHistoryEntries + 1);
  EXPECT_EQ(history.skipped, 0u);
  for (size_t i = 0; i < kMaxHistoryEntries; ++i) {
    BIM_ASSERT_OK(Append(Entry(1)));
  }
  EXPECT_LE(Read().entries.size(), kMaxHistoryEntries);
  EXPECT_FALSE(test::Exists(File() + ".new"));
}

TEST_F(HistoryTest, IsNeverTooLarge) {
  HistoryEntry large = Entry(1);
  large.message = std::string(300, '\x01');  // 1800 bytes as JSON
  size_t most = 0;
  for (size_t i = 0; i < 1000; ++i) {
    large.time_ns = static_cast<int64_t>(i);
    BIM_ASSERT_OK(Append(large));
    most = std::max<size_t>(most, std::filesystem::file_size(File()));
  }
  EXPECT_LE(most, kMaxHistoryBytes);
  EXPECT_GT(most, kMaxHistoryBytes - 2 * kMaxHistoryLine);
  const History history = Read();
  EXPECT_EQ(history.skipped, 0u);
  for (size_t i = 0; i < history.entries.size(); ++i) {
    EXPECT_EQ(history.entries[history.entries.size() - 1 - i].time_ns,
              static_cast<int64_t>(999 - i));
  }
}

TEST_F(HistoryTest, AFileThatIsTooLargeIsMadeSmaller) {
  std::string text(3 * kMaxHistoryBytes, 'x');
  text += "\n" + EncodeHistory(Entry(1)) + std::string(600'000, 'y') + "\n" +
          EncodeHistory(Entry(2));
  WriteAll(File(), text);
  EXPECT_THAT(Read().entries, SizeIs(2));
  BIM_ASSERT_OK(Append(Entry(3)));
  const History history = Read();
  ASSERT_THAT(history.entries, SizeIs(3));
  EXPECT_EQ(history.skipped, 0u);
  EXPECT_EQ(history.entries[2].time_ns, 3);
  EXPECT_LT(std::filesystem::file_size(File()), 2000u);
}

TEST_F(HistoryTest, PruneDropsWhatIsOlderAndNothingElse) {
  std::string text = "from a newer program\n";
  for (int i = 1; i <= 10; ++i) text += EncodeHistory(Entry(i));
  WriteAll(File(), text);
  auto pruned = PruneHistory(Root(), At(4), /*dry_run=*/true);
  BIM_ASSERT_OK(pruned.status());
  EXPECT_EQ(pruned->dropped, 3u);
  EXPECT_EQ(pruned->kept, 7u);
  EXPECT_EQ(Text(), text);
  pruned = PruneHistory(Root(), At(4), /*dry_run=*/false);
  BIM_ASSERT_OK(pruned.status());
  EXPECT_EQ(pruned->dropped, 3u);
  EXPECT_EQ(pruned->kept, 7u);
  EXPECT_EQ(Read().entries.front().time_ns, 4) << "from that time on they stay";
  EXPECT_EQ(Read().skipped, 1u);
  pruned = PruneHistory(Root(), At(4), false);
  EXPECT_EQ(pruned->dropped, 0u);
  pruned = PruneHistory(Root(), At(1000), false);
  EXPECT_EQ(pruned->kept, 0u);
  EXPECT_EQ(Text(), "from a newer program\n");
}

TEST_F(HistoryTest, NothingIsLostBetweenProcessesAndThreads) {
  // Old ones, that are pruned all the while.
  constexpr int kEach = 300;
  const auto append = [](const io::Dir& root, const std::string& name) {
    for (int i = 0; i < kEach; ++i) {
      if (!AppendHistory(root, Entry(i % 2 == 0 ? 1 : 1000 + i, name)).ok()) {
        return false;
      }
    }
    return true;
  };
  std::vector<pid_t> children;
  for (int child = 0; child < 2; ++child) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      const auto root = io::Dir::Open(scratch_.dir.path());
      _exit(append(*root, "child-" + std::to_string(child)) ? 0 : 1);
    }
    children.push_back(pid);
  }
  size_t dropped = 0;
  {
    std::vector<std::jthread> threads;
    for (int thread = 0; thread < 2; ++thread) {
      threads.emplace_back([&, thread] {
        for (int i = 0; i < kEach; ++i) {
          BIM_EXPECT_OK(Append(Entry(i % 2 == 0 ? 1 : 1000 + i,
                                     "thread-" + std::to_string(thread))));
        }
      });
    }
    for (int i = 0; i < 50; ++i) {
      const auto pruned = PruneHistory(Root(), At(10), false);
      BIM_EXPECT_OK(pruned.status());
      if (pruned.ok()) dropped += pruned->dropped;
    }
  }
  for (const pid_t pid : children) {
    int status = -1;
    EXPECT_EQ(::waitpid(pid, &status, 0), pid);
    EXPECT_EQ(status, 0);
  }
  const auto last = PruneHistory(Root(), At(10), false);
  BIM_ASSERT_OK(last.status());
  dropped += last->dropped;
  EXPECT_EQ(dropped, 4u * kEach / 2);
  std::map<std::string, std::vector<int64_t>> by_writer;
  const History history = Read();
  for (const HistoryEntry& entry : history.entries) {
    by_writer[entry.name].push_back(entry.time_ns);
  }
  EXPECT_EQ(history.skipped, 0u);
  EXPECT_THAT(by_writer, SizeIs(4));
  for (const auto& [name, times] : by_writer) {
    EXPECT_THAT(times, SizeIs(kEach / 2)) << name;
    EXPECT_TRUE(std::is_sorted(times.begin(), times.end())) << name;
  }
}

TEST_F(HistoryTest, WhoHoldsItTooLongIsNotWaitedFor) {
  BIM_ASSERT_OK(Append(Entry(1)));
  const base::UniqueFd held(::open(File().c_str(), O_RDWR));
  ASSERT_EQ(::flock(held.get(), LOCK_EX), 0);
  EXPECT_EQ(Append(Entry(2)).code(), Code::kDeadlineExceeded);
  EXPECT_THAT(Read().entries, SizeIs(1)) << "reading does not wait";
  BIM_EXPECT_OK(PruneHistory(Root(), At(5), true).status());
  ASSERT_EQ(::flock(held.get(), LOCK_UN), 0);
  BIM_EXPECT_OK(Append(Entry(2)));
}

TEST_F(HistoryTest, WhatIsNoFileIsLeftAlone) {
  WriteAll(scratch_.Path("precious"), "precious");
  std::filesystem::create_symlink(scratch_.Path("precious"), File());
  EXPECT_EQ(Append(Entry(1)).code(), Code::kPermissionDenied);
  EXPECT_EQ(ReadHistory(Root()).status().code(), Code::kPermissionDenied);
  EXPECT_EQ(ReadAll(scratch_.Path("precious")), "precious");
  std::filesystem::remove(File());
  ASSERT_EQ(::mkfifo(File().c_str(), 0600), 0);
  EXPECT_EQ(Append(Entry(1)).code(), Code::kFailedPrecondition);
  EXPECT_EQ(ReadHistory(Root()).status().code(), Code::kFailedPrecondition);
  EXPECT_FALSE(PruneHistory(Root(), At(5), false).ok());
}

}  // namespace
}  // namespace bim::store
