import { defineConfig } from '@playwright/test';
import { facts } from './sandbox';

// Started by `xtask end2end` and `xtask screenshots`, beside a sandbox.
export default defineConfig({
  testDir: 'tests',
  outputDir: 'test-results',
  snapshotPathTemplate: '{testDir}/snapshots/{arg}{ext}',
  // Each file has a customer of its own; jobs of one customer have to wait for each other.
  workers: 2,
  fullyParallel: false,
  forbidOnly: true,
  retries: 0,
  // A snapshot that is not there fails; `--update-snapshots` writes it.
  updateSnapshots: 'none',
  timeout: 240_000,
  expect: { timeout: 30_000 },
  reporter: [['list']],
  use: {
    baseURL: facts.url,
    browserName: 'chromium',
    launchOptions: { executablePath: '/usr/bin/chromium', args: ['--no-sandbox'] },
    locale: 'en-GB',
    timezoneId: 'Europe/Berlin',
    trace: 'retain-on-failure',
  },
  projects: [
    { name: 'end2end', testIgnore: /screenshots|interrupted|away/ },
    // They kill the worker, which is everybody's.
    { name: 'interrupted', testMatch: /interrupted/ },
    // They take the dashboard's database away, which is everybody's, too.
    { name: 'away', testMatch: /away/ },
    { name: 'screenshots', testMatch: /screenshots/ },
  ],
});
