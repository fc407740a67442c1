// The sandbox that the browser is driven against: its facts, its switches, and a look behind the pages.

import { execFileSync, spawn } from 'node:child_process';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { text } from 'node:stream/consumers';
import { setTimeout as pause } from 'node:timers/promises';

export interface Owner {
  id: number;
  name: string;
  email: string;
  password: string;
  /** His shop, through nginx. */
  shop: string;
  /** The directory of his site. */
  site: string;
  /** His schema. */
  database: string;
}

interface Facts {
  url: string;
  owners: Owner[];
  /** Who looks at all customers. */
  operator: { name: string; password: string };
  control: string;
  platform: string;
  database_socket: string;
  database_password: string;
}

export const facts: Facts = JSON.parse(readFileSync(required('SANDBOX'), 'utf8'));

export function owner(id: number): Owner {
  const found = facts.owners.find((owner) => owner.id === id);
  if (!found) throw new Error(`there is no customer ${id}`);
  return found;
}

/** Work a switch: `stop worker`, `start worker`, `line 200000`. */
export async function turn(line: string): Promise<void> {
  if (line.startsWith('line ') && line !== 'line 0') await takeLine();
  const socket = connect(facts.control);
  socket.write(`${line}\n`);
  const answer = await text(socket);
  if (answer !== 'done\n') throw new Error(`${line}: ${answer}`);
  if (line === 'line 0') rmSync(lineHolder, { force: true });
}

const lineHolder = `${facts.control}.line`;

/** The line to the backup server is everybody's: who slows it down has it for himself, until it is as fast as it goes again. */
async function takeLine(): Promise<void> {
  for (;;) {
    try {
      return writeFileSync(lineHolder, `${process.pid}`, { flag: 'wx' });
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    }
    const holder = heldBy();
    if (holder === process.pid) return;
    // Who failed with it is gone.
    if (holder !== undefined && !isAlive(holder)) rmSync(lineHolder, { force: true });
    else await pause(50);
  }
}

function heldBy(): number | undefined {
  try {
    return Number(readFileSync(lineHolder, 'utf8')) || undefined;
  } catch {
    return undefined;
  }
}

function isAlive(id: number): boolean {
  try {
    return process.kill(id, 0);
  } catch {
    return false;
  }
}

/** Run SQL as root; a line per row, tabs between columns. */
export function sql(statement: string, database = facts.platform): string {
  return execFileSync('mariadb', [...client(), database], {
    env: { ...process.env, MYSQL_PWD: facts.database_password },
    input: statement,
    encoding: 'utf8',
  });
}

/** Lock a table, so that every dump waits; gives the function that sets it free. */
export async function lockTable(database: string, table: string): Promise<() => Promise<void>> {
  const holder = spawn('mariadb', [...client(), '--unbuffered', database], {
    env: { ...process.env, MYSQL_PWD: facts.database_password },
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  const ended = new Promise<void>((resolve) => holder.once('close', () => resolve()));
  holder.stdin.write(`LOCK TABLES ${table} WRITE;\nSELECT 'locked';\n`);
  await new Promise<void>((resolve) => holder.stdout.once('data', () => resolve()));
  return () => {
    holder.stdin.end();
    return ended;
  };
}

function client(): string[] {
  return ['--no-defaults', '--user=root', '--batch', '--skip-column-names', `--socket=${facts.database_socket}`];
}

function required(name: string): string {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set: run this through \`make end2end\``);
  return value;
}
